"""A model folder is whole or not there, is checked before it is believed, and opens nothing that could run code."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlpstack.errors import ModelError
from nlpstack.hub import load_model, model_folder, save_model, weights_hash
from nlpstack.model import GPT, TransformerConfig
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer

GPT2 = TransformerConfig(vocab_size=128, max_seq_len=16, dim=32, n_layers=1, n_heads=4, activation="gelu_tanh")
LLAMA = replace(GPT2, positions="rotary", norm="rmsnorm", activation="swiglu", bias=False, tied=False)
ROOT = Path(__file__).resolve().parents[2]
WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"


def model(seed: int = 0, config: TransformerConfig = GPT2) -> GPT:
    return GPT.create(config, seed=seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(model(), tmp_path / "model")
    return tmp_path / "model"


def refused(path: Path, *parts: str) -> None:
    """Loading is refused in one line that holds the parts."""
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def change_config(folder: Path, **values: object) -> None:
    """Change config.json as a person would, who then takes the manifest away."""
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    (folder / MANIFEST).unlink()


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    (folder / MANIFEST).unlink()


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["some text"], TokenizerConfig(kind="char"))
    for name in ("a", "b"):
        fresh = model(config=replace(LLAMA, vocab_size=tokenizer.vocab_size))
        fresh.tokenizer = tokenizer
        save_model(fresh, tmp_path / name)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert first == second
    assert {WEIGHTS, CONFIG, MANIFEST, "README.md", "tokenizer.model", "tokenizer.json"} <= first.keys()
    assert weights_hash(tmp_path / "a") == weights_hash(tmp_path / "b")
    save_model(model(seed=1), tmp_path / "b")
    assert weights_hash(tmp_path / "a") != weights_hash(tmp_path / "b")


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    state = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_imports_no_compiler(folder: Path) -> None:
    code = "import sys, nlpstack; nlpstack.load_model(sys.argv[1]); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_loaded_model_is_its_own_even_if_the_file_changes(folder: Path) -> None:
    loaded = load_model(folder)
    before = loaded.transformer.tokens.weight.clone()
    with open(folder / WEIGHTS, "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(1000))
    assert torch.equal(loaded.transformer.tokens.weight, before)


def test_a_folder_named_by_run_or_model_or_dot_opens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_folder(folder.parent) == model_folder(folder) == folder
    assert load_model(str(folder.parent)).config == GPT2
    monkeypatch.chdir(folder)
    assert load_model(".").config == GPT2
    os.rename(folder, f"{folder}.aside")  # as while two folders are exchanged where the system cannot do so in one step
    assert load_model(folder).config == load_model(folder.parent).config == GPT2
    assert weights_hash(folder) == weights_hash(f"{folder}.aside")


def test_the_card_is_free_text(folder: Path) -> None:
    (folder / "README.md").write_text("my own words")
    assert load_model(folder).config == GPT2
    save_model(model(), folder, card="# Mine\n")
    assert (folder / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_truncated_or_altered_file_is_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(folder, name, "altered", "copy the folder again")
    (folder / name).write_bytes(whole[:-1])
    refused(folder, name, f"{len(whole) - 1} bytes", "copy the folder again")
    (folder / name).unlink()
    refused(folder, name if name == WEIGHTS else "holds no model")


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1])
def test_a_truncated_foreign_weights_file_is_named(folder: Path, size: int) -> None:
    (folder / MANIFEST).unlink()
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
    refused(folder, WEIGHTS, "not a whole safetensors file", "copy the folder again")


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8 + b"{}",  # longer than the file
        b"\x02" + bytes(7) + b"{}",  # no tensors
        b"\x04" + bytes(7) + b"null",
        (lambda text: len(text).to_bytes(8, "little") + text)(
            b'{"transformer.wte.weight": {"dtype": "F32", "shape": [128, 32], "data_offsets": [0, 99999999]}}'
        ),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(folder: Path, header: bytes) -> None:
    (folder / MANIFEST).unlink()
    (folder / WEIGHTS).write_bytes(header)
    refused(folder, WEIGHTS, "copy the folder again")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop("transformer.h.0.ln_1.bias"), ["lacks transformer.h.0.ln_1.bias;"]),
        (lambda t: t.pop("transformer.wte.weight"), ["lacks transformer.wte.weight;"]),
        (lambda t: t.update(score=torch.ones(2)), ["holds what the model has no place for: score;"]),
        (
            lambda t: t.update({f"transformer.h.1.{name}": torch.ones(2) for name in "abcde"}),
            ["no place for: transformer.h.1.a, transformer.h.1.b, transformer.h.1.c and 2 more;"],
        ),
        (
            lambda t: t.update({"transformer.h.0.mlp.c_fc.weight": torch.ones(128, 32)}),
            ["does not fit config.json: transformer.h.0.mlp.c_fc.weight [128, 32] instead of [32, 128];"],
        ),
        (lambda t: t.update({"transformer.ln_f.bias": torch.ones(())}), ["transformer.ln_f.bias [] instead of [32]"]),
        (
            lambda t: t.update({"transformer.ln_f.bias": torch.ones(32, dtype=torch.int8)}),
            ["transformer.ln_f.bias is stored as I8, which is not supported"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, change, parts: list[str]) -> None:
    change_weights(folder, change)
    refused(folder, str(folder / WEIGHTS), *parts)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"n_layer": 10**12}, ["too few for the 1,000,000,000,000 layers of config.json"]),
        ({"vocab_size": 2**62}, ["sizes that no tensor can have"]),
        ({"vocab_size": 129}, ["transformer.wte.weight [128, 32] instead of [129, 32]"]),
        ({"tie_word_embeddings": False}, ["lacks lm_head.weight"]),
        (
            {"model_type": "bloom"},
            ["model_type 'bloom' is not supported; there are gpt2, llama, bert, roberta, nlpstack"],
        ),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(folder: Path, values: dict, parts: list[str]) -> None:
    change_config(folder, **values)
    refused(folder, *parts)


def test_a_causal_shape_with_segments_is_refused(tmp_path: Path) -> None:
    save_model(model(config=replace(GPT2, bias=False)), tmp_path / "m")
    change_config(tmp_path / "m", n_segments=2)
    refused(tmp_path / "m", "config.json: causal=True with n_segments=2; a GPT reads no segments")


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"model_type": "gpt2"'])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).unlink()
    (folder / CONFIG).write_text(text)
    refused(folder, str(folder / CONFIG))


@dataclass
class Bomb:
    """A pickle that leaves a file behind when it is opened."""

    mark: str

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", [WEIGHTS, "pytorch_model.bin", "weights.pt", "last.ckpt"])
def test_a_pickle_is_refused_and_never_opened(folder: Path, tmp_path: Path, place: str, zipped: bool) -> None:
    (folder / MANIFEST).unlink()
    (folder / WEIGHTS).unlink()
    bomb = Bomb(str(tmp_path / "exploded"))
    if zipped:
        torch.save(bomb, folder / place)
    else:
        (folder / place).write_bytes(pickle.dumps(bomb))
    cure = f"get the model as {WEIGHTS}"
    if place != WEIGHTS:
        cure += f", or write its tensors as that: nlpstack convert {folder / place} --out DIR"
    refused(folder, place, "a pickle", "can run any code", cure)
    if place != WEIGHTS:
        refused(folder / place, place, "a pickle")
        (folder / CONFIG).unlink()
        refused(folder, place, "a pickle")
    shutil.copy(folder / place, tmp_path / "unnamed")
    refused(tmp_path / "unnamed", "unnamed", "a pickle")
    assert not (tmp_path / "exploded").exists()


def test_weights_are_not_taken_for_a_pickle_by_the_length_of_their_header(folder: Path) -> None:
    """Bare pickles begin with 0x80, and so does each file whose header is 128 bytes and a multiple of 256 long."""
    tensors = load_file(folder / WEIGHTS)
    for size in range(256):
        save_file(tensors, folder / WEIGHTS, metadata={"format": "x" * size})
        if (folder / WEIGHTS).read_bytes()[0] == 0x80:
            break
    assert (folder / WEIGHTS).read_bytes()[0] == 0x80
    (folder / MANIFEST).unlink()
    load_model(folder)


def test_what_holds_no_model_is_told_apart(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "modle", "no such file or folder", f"did you mean '{folder}'?")
    refused(tmp_path / "no" / "such", f"nor is there a folder {tmp_path / 'no'}")
    refused(folder / WEIGHTS, "give the folder that holds it")
    run = tmp_path / "run"
    run.mkdir()
    refused(run, "holds no model")
    (run / "config.toml").touch()
    refused(run, "no finished model yet", "--resume")
    (folder / MANIFEST).unlink()
    os.rename(folder / WEIGHTS, folder / "model-00001-of-00002.safetensors")
    refused(folder, f"{WEIGHTS}: missing")
    (folder / f"{WEIGHTS}.index.json").touch()
    refused(folder, f"{WEIGHTS}.index.json: cannot be read as JSON")


def test_a_tokenizer_that_does_not_belong_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["some text"], TokenizerConfig(kind="char"))
    fitting = model(config=replace(GPT2, vocab_size=tokenizer.vocab_size + 5))  # a padded vocabulary is fine
    fitting.tokenizer = tokenizer
    save_model(fitting, tmp_path / "fits")
    assert load_model(tmp_path / "fits").tokenizer.hash == tokenizer.hash
    other = train_tokenizer(["other text"], TokenizerConfig(kind="char"))
    other.save(tmp_path / "fits")
    refused(tmp_path / "fits", "tokenizer", "manifest.json")
    save_model(model(), tmp_path / "small")
    tokenizer.save(tmp_path / "small")
    refused(tmp_path / "small", "the tokenizer has", "ids and the model 128")
    (tmp_path / "small" / "tokenizer.model").write_bytes(b"nonsense")
    refused(tmp_path / "small", "tokenizer.model", "SentencePiece")
    too_small = model()
    too_small.tokenizer = tokenizer
    with pytest.raises(ModelError, match="do not belong together"):
        save_model(too_small, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", ["notes.txt", CONFIG, MANIFEST])
def test_a_foreign_folder_is_never_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").mkdir()
    save_model(model(), tmp_path / "mine")  # an empty folder is in nobody's way
    save_model(model(seed=1), tmp_path / "mine")  # nor is our own
    shutil.rmtree(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / content).write_text("{}")
    with pytest.raises(ModelError, match="is not replaced"):
        save_model(model(), tmp_path / "mine")
    with pytest.raises(ModelError, match="is not replaced"):
        save_model(model(), tmp_path / "mine" / content)
    assert os.listdir(tmp_path) == ["mine"]
    assert os.listdir(tmp_path / "mine") == [content]


def test_saving_through_a_link_replaces_what_it_points_to(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    save_model(model(seed=1), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert weights_hash(folder) == weights_hash(tmp_path / "link")


def test_an_error_while_saving_leaves_the_old_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    for name in ("nlpstack.hub.weights.save_file", "nlpstack.files.write_file", "nlpstack.files.publish"):
        with monkeypatch.context() as patched:
            patched.setattr(name, full_disk)
            with pytest.raises(OSError, match="no space left"):
                save_model(model(seed=1), folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert os.listdir(folder.parent) == ["model"]


def test_weights_that_vanish_while_they_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch, not Python, opens the file to map it, with an error of its own; a second look then tells what is gone."""
    monkeypatch.setattr("nlpstack.hub.weights.safe_open", vanishing)
    with pytest.raises(ModelError, match=r"model.safetensors: missing"):
        load_model(folder)


def vanishing(file: Path, framework: str) -> None:
    os.rename(file, f"{file}.gone")
    torch.UntypedStorage.from_file(str(file), shared=False, nbytes=1)  # what safetensors does
