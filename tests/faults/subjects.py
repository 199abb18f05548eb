"""Everything that nlpstack saves, as something that is saved again over an older state while calls fail."""

import json
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch

from nlpstack import files
from nlpstack.data import shards
from nlpstack.data.readers import Piece
from nlpstack.data.shards import ShardSpec, load_or_tokenize
from nlpstack.hub import load_model, save_model
from nlpstack.model import GPT, TransformerConfig
from nlpstack.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from nlpstack.train.checkpoint import Checkpoint, Checkpoints
from nlpstack.train.run import MetricsLog, RunFolder, load_run, read_record
from tests.handmade import cut, encode

SHAPE = TransformerConfig(vocab_size=300, max_seq_len=16, dim=16, n_layers=1, n_heads=2)
TEXTS = [f"document {number} of some words." + " and. more" * (number % 7) for number in range(30)]
SPEC = ShardSpec(split_key="k", tokenizer_hash="t", vocab_size=2000, bos_id=1, eos_id=2, sentences="full stops")


@dataclass(frozen=True)
class Subject:
    """What is saved: the state before, the save, and the state that a reader finds, "old" or "new", if it is whole."""

    name: str
    prepare: Callable[[Path], None]
    save: Callable[[Path], None]
    read: Callable[[Path], str]  # raises where what stands there is not whole


def require(holds: bool, fault: str) -> None:
    """Raise AssertionError saying what does not hold, also where assertions are off."""
    if not holds:
        raise AssertionError(fault)


# -- checkpoints -----------------------------------------------------------------------------------------------------


def _checkpoint(step: int) -> Checkpoint:
    tensors = {"w": torch.full((4000,), float(step)), "b": torch.arange(5.0)}
    return Checkpoint(tensors, {"w.exp_avg": torch.full((3000,), -float(step))}, {"step": step, "rng": "0" * 9000})


def _prepare_checkpoints(folder: Path) -> None:
    for step in (1, 2, 3):
        Checkpoints(folder / "checkpoints").save(_checkpoint(step), best_step=1)


def _save_checkpoint(folder: Path) -> None:
    Checkpoints(folder / "checkpoints").save(_checkpoint(4), best_step=1)


def _read_checkpoints(folder: Path) -> str:
    """The newest must be whole, step 3's or the new one of step 4; the older ones are in nobody's way."""
    notes: list[str] = []
    found = Checkpoints(folder / "checkpoints").load_newest(notes.append)
    require(
        found is not None and found.state["step"] in (3, 4) and not notes, f"found {found and found.state}, {notes}"
    )
    wanted = _checkpoint(found.state["step"])
    same = all(torch.equal(wanted.model[name], tensor) for name, tensor in found.model.items())
    require(same and found.model.keys() == wanted.model.keys(), "other weights than were saved")
    require(torch.equal(found.optimizer["w.exp_avg"], wanted.optimizer["w.exp_avg"]), "another optimizer state")
    best = Checkpoints(folder / "checkpoints").load(1)
    require(torch.equal(best.model["w"], _checkpoint(1).model["w"]), "the best one is another")
    listed = json.loads((Checkpoints(folder / "checkpoints").path(found.state["step"]) / "manifest.json").read_text())
    require(len(listed["files"]) == 3, f"the manifest lists {list(listed['files'])}")
    return "new" if found.state["step"] == 4 else "old"


# -- model and tokenizer folders -------------------------------------------------------------------------------------

MODELS = {"old": 0, "new": 1}  # seeds


def _model(name: str) -> GPT:
    tokenizer = train_tokenizer(["some text of old", f"and {name}"], TokenizerConfig(kind="char"))
    return GPT.create(replace(SHAPE, vocab_size=tokenizer.vocab_size), seed=MODELS[name], tokenizer=tokenizer)


def _model_subject(name: str, exchange: bool) -> Subject:
    known = {name: _model(name) for name in MODELS}

    @contextmanager
    def moving() -> object:
        with mock.patch.object(files, "_exchange", files._exchange if exchange else lambda first, second: False):
            yield

    def save(folder: Path) -> None:
        with moving():
            save_model(known["new"], folder / "model")

    def read(folder: Path) -> str:
        found = load_model(folder / "model")
        (state,) = [name for name, one in known.items() if one.tokenizer.hash == found.tokenizer.hash]
        same = all(torch.equal(a, b) for a, b in zip(known[state].parameters(), found.parameters(), strict=True))
        require(same, f"the weights are not those of the {state} model")
        return state

    return Subject(name, lambda folder: save_model(known["old"], folder / "model"), save, read)


def _tokenizer_subject() -> Subject:
    known = {name: _model(name).tokenizer for name in MODELS}

    def write(folder: Path, name: str) -> None:
        with files.new_folder(folder / "tokenizer") as made:
            known[name].save(made)

    def read(folder: Path) -> str:
        found = load_tokenizer(files.standing(folder / "tokenizer")).hash
        return next(name for name, one in known.items() if one.hash == found)

    return Subject("tokenizer", lambda folder: write(folder, "old"), lambda folder: write(folder, "new"), read)


# -- single files ----------------------------------------------------------------------------------------------------

CONTENTS = {"old": "old é\n" * 5000, "new": "new ü\n" * 9000}


def _read_file(folder: Path) -> str:
    found = (folder / "a.txt").read_text(encoding="utf-8")
    return next(name for name, text in CONTENTS.items() if text == found)


def _write_record(folder: Path, seed: int) -> None:
    run = load_run("gpt", "pretrain", {"train.seed": seed}, [])
    RunFolder(folder).write_record(run, {"choices": {"steps": seed}})


def _read_record(folder: Path) -> str:
    record = read_record(folder)
    require(record["choices"]["steps"] == record["train"]["seed"], "a mixture of two records")
    return {5: "old", 6: "new"}[record["train"]["seed"]]


def _log(folder: Path) -> MetricsLog:
    return MetricsLog(folder / "metrics.jsonl")


def _prepare_log(folder: Path) -> None:
    for step in range(3):
        _log(folder).write({"step": step, "text": "é" * 2000})
    (folder / "length").write_text(str(_log(folder).sync()))


def _save_log(folder: Path) -> None:
    """As a resumed run does: cut back to the checkpoint's length, then go on."""
    log = _log(folder)
    log.cut(int((folder / "length").read_text()))
    for step in range(3, 6):
        log.write({"step": step, "text": "é" * 9000})
    log.sync()


def _read_log(folder: Path) -> str:
    """What was written up to the checkpoint stands; a line that was cut off by a full disk may follow it."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    whole = [json.loads(line)["step"] for line in lines[:-1]]
    require(whole == list(range(len(whole))) and len(whole) >= 3, f"lines of steps {whole}")
    return "new" if len(whole) == 6 and lines[-1] == "" else "old"


# -- shards ----------------------------------------------------------------------------------------------------------


def _save_shards(folder: Path) -> None:
    rows = [Piece(text[at : at + 8], last=at + 8 >= len(text)) for text in TEXTS for at in range(0, len(text), 8)]
    with mock.patch.object(shards, "SHARD_TOKENS", 200), mock.patch.object(shards, "GROUP_BYTES", 60):
        load_or_tokenize(lambda: rows, encode, SPEC, folder / "cache", lambda _: None, segment=cut)


def _shards_subject(scratch: Path) -> Subject:
    _save_shards(scratch)
    wanted = {path.name: path.read_bytes() for path in (scratch / "cache" / SPEC.key).iterdir()}
    require(len(wanted) > 20, f"only {len(wanted)} files to make fail")

    def read(folder: Path) -> str:
        found = {path.name: path.read_bytes() for path in (folder / "cache").glob("*/*") if path.name[0] != "."}
        different = [name for name, data in found.items() if wanted.get(name) != data]
        require(not different, f"other bytes in {different}")
        return "new" if found == wanted else "old"

    def prepare(folder: Path) -> None:
        shutil.rmtree(folder / "cache", ignore_errors=True)

    return Subject("shards", prepare, _save_shards, read)


def subjects(scratch: Path) -> list[Subject]:
    """Everything that is saved; `scratch` is a folder to make what it is compared with."""
    scratch.mkdir(exist_ok=True)
    return [
        Subject("checkpoint", _prepare_checkpoints, _save_checkpoint, _read_checkpoints),
        _model_subject("model", exchange=True),
        _model_subject("model moved aside", exchange=False),
        _tokenizer_subject(),
        Subject(
            "file",
            lambda folder: files.write_file(folder / "a.txt", CONTENTS["old"]),
            lambda folder: files.write_file(folder / "a.txt", CONTENTS["new"]),
            _read_file,
        ),
        Subject(
            "record", lambda folder: _write_record(folder, 5), lambda folder: _write_record(folder, 6), _read_record
        ),
        Subject("metrics", _prepare_log, _save_log, _read_log),
        _shards_subject(scratch),
    ]
