"""Weights in several files, as transformers writes large models: read as one, and refused where they are not whole."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nlpstack.errors import ModelError
from nlpstack.hub import load_model, save_model, weights_hash
from nlpstack.model import BERT

INDEX = "model.safetensors.index.json"
THEIRS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=200, n_positions=16, n_embd=32, n_layer=3, n_head=4)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            **{"vocab_size": 200, "max_position_embeddings": 16, "hidden_size": 32, "intermediate_size": 80},
            **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
        )
    ),
    "bert": lambda: BertForMaskedLM(
        BertConfig(
            **{"vocab_size": 200, "max_position_embeddings": 16, "hidden_size": 32, "intermediate_size": 64},
            **{"num_hidden_layers": 3, "num_attention_heads": 4},
        )
    ),
}


def sharded(name: str, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    theirs = THEIRS[name]().eval()
    theirs.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return theirs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sharded("gpt2", tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.mark.parametrize("name", THEIRS)
def test_several_files_are_the_same_model_as_one(name: str, tmp_path: Path) -> None:
    theirs = sharded(name, tmp_path / "many")
    theirs.save_pretrained(tmp_path / "one")
    many, one = load_model(tmp_path / "many"), load_model(tmp_path / "one")
    assert all(map(torch.equal, many.state_dict().values(), one.state_dict().values()))
    tokens = torch.randint(200, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = many.mlm_logits(many(tokens)) if isinstance(many, BERT) else many(tokens)
        torch.testing.assert_close(logits, theirs(tokens).logits, rtol=0, atol=1e-5)
    save_model(many, tmp_path / "ours")  # back as one file, which is theirs to the bit
    assert not (tmp_path / "ours" / INDEX).exists()
    written, given = (
        load_file(tmp_path / "ours" / "model.safetensors"),
        load_file(tmp_path / "one" / "model.safetensors"),
    )
    assert written.keys() == given.keys()
    assert all(torch.equal(written[key], given[key]) for key in written)


def test_the_hash_is_of_all_files_and_one_file_keeps_its_own(folder: Path, tmp_path: Path) -> None:
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))]
    assert weights_hash(folder) == hashlib.sha256("".join(hashes).encode()).hexdigest()
    save_model(load_model(folder), tmp_path / "one")
    file = tmp_path / "one" / "model.safetensors"
    assert weights_hash(tmp_path / "one") == hashlib.sha256(file.read_bytes()).hexdigest()


def change_index(folder: Path, change: Callable[[dict], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def first(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def swap(folder: Path) -> None:
    one, other = sorted(folder.glob("*.safetensors"))[:2]
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def double(folder: Path) -> None:
    one, other = sorted(folder.glob("*.safetensors"))[:2]
    save_file({**load_file(other), **load_file(one)}, other)


def pickled(folder: Path) -> None:
    torch.save({"weight": torch.ones(2)}, first(folder))


def outside(folder: Path, name: str) -> None:
    shutil.copy(first(folder), folder.parent / "stolen.safetensors")
    change_index(folder, lambda places: places.update(dict.fromkeys(load_file(first(folder)), name)))


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (
            lambda folder: first(folder).unlink(),
            ["-00001-of-", "missing, though model.safetensors.index.json names it"],
        ),
        (lambda folder: first(folder).write_bytes(first(folder).read_bytes()[:-9]), ["-00001-of-", "not a whole"]),
        (lambda folder: first(folder).write_bytes(b"\xff" * 64), ["-00001-of-", "not a whole"]),
        (swap, [INDEX, "is not in the file that the index says"]),
        (double, ["-00002-of-", "also stands in", "-00001-of-"]),
        (pickled, ["-00001-of-", "a pickle"]),
        (lambda folder: outside(folder, "../stolen.safetensors"), [INDEX, "'../stolen.safetensors'", "beside it"]),
        (lambda folder: outside(folder, str(folder.parent / "stolen.safetensors")), [INDEX, "beside it"]),
        (lambda folder: outside(folder, "pytorch_model.bin"), [INDEX, "'pytorch_model.bin'"]),
        (lambda folder: change_index(folder, dict.clear), [INDEX, "'weight_map' must tell"]),
        (lambda folder: change_index(folder, lambda places: places.update(x=7)), [INDEX, "'weight_map' must tell"]),
        (lambda folder: change_index(folder, lambda places: places.popitem()), [INDEX, "lacks"]),
        (lambda folder: change_index(folder, lambda p: p.update(ghost=min(p.values()))), [INDEX, "ghost is not in"]),
        (lambda folder: (folder / INDEX).write_text("{"), [INDEX, "cannot be read as JSON"]),
        (lambda folder: (folder / INDEX).write_text("{}"), [INDEX, "'weight_map' must tell"]),
    ],
)
def test_what_is_not_whole_is_refused_in_one_line(
    folder: Path, spoil: Callable[[Path], object], parts: list[str]
) -> None:
    load_model(folder)
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


def test_a_file_beside_the_index_is_read_in_its_place(folder: Path) -> None:
    """As transformers does: one whole file comes first."""
    whole = load_model(folder)
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / INDEX).write_text("{}")
    assert all(map(torch.equal, load_model(folder).state_dict().values(), whole.state_dict().values()))
