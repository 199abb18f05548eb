"""Commands run in this process, and the smallest run that they can be tried on."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from nlpstack.cli import _exit_code
from nlpstack.samples import sample

STEPS = 5
SHAPE = {"model.dim": 32, "model.n_layers": 1, "model.n_heads": 2, "model.max_seq_len": 32, "model.dropout": 0.1}
VALUES = {
    **SHAPE,
    "tokenizer.vocab_size": 500,
    "optim.lr": 0.002,
    "train.batch_size": 4,
    "train.sample_tokens": 5,
    "eval.resamples": 20,
}


class Outcome(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on the one line of stdout."""
        assert self.code == 0, self.err
        assert self.out.endswith("\n"), self.out
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def fault(self) -> str:
        """The one line that says what was wrong, behind whatever was said before it."""
        assert (self.code, self.out) == (2, ""), self
        assert self.err.endswith("\n"), self.err
        *before, last = self.err.removesuffix("\n").split("\n")
        assert last.startswith("nlpstack: "), self.err
        assert not any("nlpstack: " in line or "Traceback" in line for line in before), self.err
        return last


def nlpstack(*words: object, stdin: bytes = b"") -> Outcome:
    """Run a command as the shell would, but without a process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="", write_through=True) for _ in range(2))
    taken = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is so small that a second thread only costs time
    try:
        with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "stdin", taken):
            code = _exit_code([str(word) for word in words])
    finally:
        torch.set_num_threads(before)
    return Outcome(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def settings(**values: object) -> list[str]:
    """--set words for the tiny values and others; `train__steps=3` is train.steps=3, None leaves a value out."""
    chosen = {**VALUES, "train.steps": STEPS, **{key.replace("__", "."): value for key, value in values.items()}}
    return [word for key, value in chosen.items() if value is not None for word in ("--set", f"{key}={value}")]


def pretrain(data: object, out: object, *words: object, **values: object) -> list[object]:
    """The words of a command that pretrains the smallest GPT."""
    return ["pretrain", "gpt", "--threads", 1, "--data", data, "--out", out, *settings(**values), *words]


def write_text(folder: Path, start: int = 0, size: int = 40_000) -> Path:
    """A file with a stretch of the bundled text."""
    path = folder / f"text-{start}.txt"
    path.write_text(sample("shakespeare").read_text(encoding="utf-8")[start : start + size])
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: the bytes of files, None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
