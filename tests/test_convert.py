"""`nlpstack convert`: GGUF files and pickled weights become plain folders, and no code in a pickle is ever run."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from nlpstack.convert import convert
from nlpstack.errors import ConfigError, ModelError, NlpstackError
from nlpstack.hub import load_model
from tests.gguf_files import parts, random_model, save
from tests.tiny import nlpstack

pytestmark = pytest.mark.filterwarnings("error:::torch")  # they would stand before the one line

BIN, INDEX, WEIGHTS = "pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors"
SHAPE = {"vocab_size": 60, "max_position_embeddings": 16, "hidden_size": 16, "intermediate_size": 32}
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2}
THEIRS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SHAPE, **HEADS)),
    "bert classifier": lambda: BertForSequenceClassification(BertConfig(**SHAPE, **HEADS, num_labels=3)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SHAPE, **HEADS)),
}


@dataclass
class Bomb:
    """A pickle that leaves a folder behind when it is opened."""

    mark: str

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def pickled(folder: Path, name: str = "gpt2", file: str = BIN, **options: Any) -> tuple[PreTrainedModel, Path]:
    """A model of transformers whose weights are pickled, and the same beside it as transformers writes it."""
    torch.manual_seed(0)
    theirs = THEIRS[name]().eval()
    theirs.save_pretrained(folder)
    theirs.save_pretrained(folder.with_name("plain"))
    (folder / WEIGHTS).unlink()
    torch.save(theirs.state_dict(), folder / file, **options)
    return theirs, folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", THEIRS)
def test_pickled_weights_become_the_folder_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, folder = pickled(tmp_path / "old", name)
    result = convert(folder, tmp_path / "new")
    assert (result.out, result.form) == (str(tmp_path / "new"), "pickled weights")
    assert equal(tensors(tmp_path / "new"), tensors(tmp_path / "plain"))
    assert not list((tmp_path / "new").glob("*.bin"))
    again, report = type(theirs).from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(map(torch.equal, again.state_dict().values(), theirs.state_dict().values()))
    model = load_model(tmp_path / "new")
    assert model.config == load_model(tmp_path / "plain").config
    assert result.parameters == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_gguf_file_becomes_a_folder(name: str, tmp_path: Path) -> None:
    theirs = random_model(name, tied=False)
    theirs.save_pretrained(tmp_path / "plain")
    result = convert(save(tmp_path / "model.gguf", parts(theirs)), tmp_path / "new")
    assert result.form == "a GGUF file"
    assert equal(tensors(tmp_path / "new"), tensors(tmp_path / "plain"))
    assert (tmp_path / "new" / "tokenizer.json").is_file()


def test_a_plain_folder_is_written_again(tmp_path: Path) -> None:
    pickled(tmp_path / "old")
    assert convert(tmp_path / "plain", tmp_path / "new").form == "a model folder"
    assert equal(tensors(tmp_path / "new"), tensors(tmp_path / "plain"))


def keep(name: str, change: Callable[[Any], Any], **options: Any) -> Callable[[Path], Path]:
    """Write what a change makes of the weights as another file, and give its path."""

    def write(folder: Path) -> Path:
        state = torch.load(folder / BIN, weights_only=True)
        (folder / BIN).unlink()
        torch.save(change(state), folder / name, **options)
        return folder if name == BIN else folder / name

    return write


def in_two(folder: Path) -> Path:
    state = torch.load(folder / BIN, weights_only=True)
    (folder / BIN).unlink()
    places = {name: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, name in enumerate(state)}
    for place in set(places.values()):
        torch.save({name: state[name] for name in state if places[name] == place}, folder / place)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def parameters(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "kept",
    [
        in_two,
        keep("weights.pt", dict),
        keep("last.ckpt", lambda state: {"state_dict": state, "epoch": 3}),
        keep(BIN, dict, _use_new_zipfile_serialization=False),
        keep("weights.pth", dict, _use_new_zipfile_serialization=False),
        keep(BIN, parameters),
        keep(BIN, lambda state: {name: tensor.t().contiguous().t() for name, tensor in state.items()}),
        keep(BIN, lambda state: {name: tensor.expand(1, *tensor.shape)[0] for name, tensor in state.items()}),
    ],
)
def test_all_ways_to_keep_weights_are_read(kept: Callable[[Path], Path], name: str, tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old", name)
    convert(kept(folder), tmp_path / "new")
    assert equal(tensors(tmp_path / "new"), tensors(tmp_path / "plain"))
    AutoModel.from_pretrained(tmp_path / "new")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read_as_from_a_plain_folder(dtype: torch.dtype, tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old")
    state = torch.load(folder / BIN, weights_only=True)
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, folder / BIN)
    convert(folder, tmp_path / "new")
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(torch.equal(one, state[name].to(dtype).to(wanted)) for name, one in tensors(tmp_path / "new").items())


def refused(source: Path, out: Path, *parts: str, kind: type[NlpstackError] = ModelError) -> None:
    """In one line, with nothing written, by the function and by the command."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(kind) as caught:
        convert(source, out)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message
    outcome = nlpstack("convert", str(source), "--out", str(out))
    assert outcome.fault == f"nlpstack: {message}"
    assert sorted(out.parent.rglob("*")) == before


def test_what_exists_is_not_replaced(tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old")
    (tmp_path / "new").mkdir()
    refused(folder, tmp_path / "new", f"{tmp_path / 'new'}: exists; give another --out", kind=ConfigError)


@pytest.mark.parametrize("form", ["zip", "old", "bare", "hidden"])
@pytest.mark.parametrize("name", [BIN, "weights.pt", "weights.pth", "last.ckpt", "all.pkl", "all.pickle"])
def test_code_in_a_pickle_is_never_run(name: str, form: str, tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old")
    mark, state = tmp_path / "exploded", torch.load(folder / BIN, weights_only=True)
    (folder / BIN).unlink()
    bomb = Bomb(str(mark))
    if form == "bare":
        (folder / name).write_bytes(pickle.dumps(bomb))
    else:
        held = {**state, "extra": bomb} if form == "hidden" else bomb
        torch.save(held, folder / name, _use_new_zipfile_serialization=form != "old")
    refused(folder / name, tmp_path / "new", name, "holds more than tensors, or is damaged; not opened")
    if name == BIN:
        refused(folder, tmp_path / "new", name, "not opened")
    assert not mark.exists()


def test_code_in_one_of_several_files_is_never_run(tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old")
    in_two(folder)
    torch.save({"x": Bomb(str(tmp_path / "exploded"))}, folder / "pytorch_model-00002-of-00002.bin")
    refused(folder, tmp_path / "new", "pytorch_model-00002-of-00002.bin", "not opened")
    assert not (tmp_path / "exploded").exists()


def test_code_in_a_zip_is_never_run(tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old")
    with zipfile.ZipFile(folder / BIN, "w") as made:
        made.writestr("archive/data.pkl", pickle.dumps(Bomb(str(tmp_path / "exploded"))))
        made.writestr("archive/version", "3\n")
    refused(folder, tmp_path / "new", BIN, "not opened")
    assert not (tmp_path / "exploded").exists()


def test_code_before_a_zip_is_never_run(tmp_path: Path) -> None:
    """A pickle with a zip behind it is a zip for who looks at its end, and a pickle for who looks at its beginning."""
    _, folder = pickled(tmp_path / "old")
    zipped = (folder / BIN).read_bytes()
    (folder / BIN).write_bytes(pickle.dumps(Bomb(str(tmp_path / "exploded"))) + zipped)
    refused(folder, tmp_path / "new", BIN, "not opened")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "held",
    [
        {},
        [],
        [torch.ones(2)],
        torch.ones(2),
        {"x": 1},
        {"state_dict": 3},
        {"state_dict": {}},
        {3: torch.ones(2)},
        {"x": "y"},
        {"x": {"y": torch.ones(2)}},
        {"x": torch.eye(3).to_sparse()},
        {"x": torch.ones(2, device="meta")},
        {"x": torch.ones(1).expand(2**50)},
    ],
)
def test_what_is_no_table_of_tensors_is_refused(held: object, tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old")
    torch.save(held, folder / BIN)
    refused(folder, tmp_path / "new", f"{folder / BIN}: holds no table of tensors by name")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old")
    in_two(folder)
    first, second = sorted(folder.glob("*.bin"))
    torch.save({**torch.load(first, weights_only=True), **torch.load(second, weights_only=True)}, second)
    refused(folder, tmp_path / "new", f"{second}: holds no table of tensors by name, each once")


@pytest.mark.parametrize("old", [False, True])
def test_a_damaged_file_is_refused(old: bool, tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old", _use_new_zipfile_serialization=not old)
    whole = (folder / BIN).read_bytes()
    for end in (0, 1, 2, 40, 200, len(whole) // 3, len(whole) // 2, len(whole) - 30):
        (folder / BIN).write_bytes(whole[:end])
        with pytest.raises(ModelError, match=BIN) as caught:
            convert(folder, tmp_path / "new")
        assert "\n" not in str(caught.value)
    refused(folder, tmp_path / "new", BIN, "damaged")
    random = np.random.default_rng(3)
    for _ in range(60):
        data = bytearray(whole)
        for at in random.integers(0, len(data) if old else 9000, 3):
            data[at] = int(random.integers(256))
        (folder / BIN).write_bytes(data)
        try:
            convert(folder, tmp_path / "new")
        except ModelError:
            assert not (tmp_path / "new").exists()
        else:
            (tmp_path / "new").rename(tmp_path / f"read-{random.integers(2**62)}")


@pytest.mark.parametrize(
    ("places", "part"),
    [
        ({"x": "../stolen.bin"}, "../stolen.bin"),
        ({"x": "/etc/passwd"}, "/etc/passwd"),
        ({"x": "sub/part.bin"}, "sub/part.bin"),
        ({"x": "none.bin"}, "none.bin"),
        ({"x": "config.json"}, "config.json"),
        ({"x": 3}, "3"),
        ({}, BIN),
        ([], BIN),
        (None, BIN),
    ],
)
def test_an_index_that_leaves_the_folder_or_is_none_is_refused(places: object, part: str, tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old")
    (folder / "sub").mkdir()
    for place in (tmp_path / "stolen.bin", folder / "sub" / "part.bin"):
        place.write_bytes((folder / BIN).read_bytes())
    (folder / BIN).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    refused(folder, tmp_path / "new", f"{folder}: has no file of weights {part} to convert")


def test_other_faults_are_told_in_one_line(tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old")
    refused(tmp_path / "none", tmp_path / "new", "no such file")
    refused(tmp_path / "none.bin", tmp_path / "new", "none.bin: no such file")
    refused(tmp_path / "none.gguf", tmp_path / "new", "no such file")
    refused(folder / "config.json", tmp_path / "new", "a file; give the folder that holds it")
    state = torch.load(folder / BIN, weights_only=True)
    lacking = state.pop("transformer.ln_f.weight")
    torch.save(state, folder / BIN)
    refused(folder, tmp_path / "new", BIN, "lacks transformer.ln_f.weight")
    torch.save(state | {"transformer.ln_f.weight": lacking.to(torch.int32)}, folder / BIN)
    refused(folder, tmp_path / "new", BIN, "torch.int32, which is not supported")
    torch.save(state | {"transformer.ln_f.weight": lacking[:3].clone()}, folder / BIN)
    refused(folder, tmp_path / "new", BIN, "does not fit config.json")
    (folder / "config.json").unlink()
    refused(folder / BIN, tmp_path / "new", "config.json")
    refused(folder, tmp_path / "new", "a pickle")


def test_a_folder_with_a_pickle_is_opened_by_no_other_command(tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old")
    with pytest.raises(ModelError, match=r"a pickle.*nlpstack convert") as caught:
        load_model(folder)
    cure = str(caught.value).partition("nlpstack convert ")[2].split()
    assert cure == [str(folder / BIN), "--out", "DIR"]
    outcome = nlpstack("convert", cure[0], "--out", str(tmp_path / "new"))
    assert (outcome.code, outcome.err) == (0, "")

    load_model(tmp_path / "new")


def test_the_command_tells_what_it_did_as_json(tmp_path: Path) -> None:
    _, folder = pickled(tmp_path / "old")
    told = nlpstack("convert", str(folder), "--out", str(tmp_path / "new"), "--json").json
    n = sum(one.numel() for one in load_model(tmp_path / "new").parameters())
    assert told == {"out": str(tmp_path / "new"), "parameters": n, "form": "pickled weights"}
    outcome = nlpstack("convert", str(folder), "--out", str(tmp_path / "again"))
    assert outcome.out == f"{tmp_path / 'again'}: {n:,} parameters, from pickled weights\n"
