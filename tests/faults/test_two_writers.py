"""One run folder has one writer, and a reader sees whole folders only: a short form of `make torture`."""

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from nlpstack.train import run
from tests.faults.two_writers import (
    command,
    in_one_step,
    read_checkpoints,
    read_models,
    torture_pairs,
    write_checkpoints,
    write_models,
)
from tests.tiny import nlpstack, tree, write_text


@pytest.mark.slow
def test_of_two_commands_on_one_folder_one_proceeds_as_if_alone(tmp_path: Path) -> None:
    results = torture_pairs(tmp_path, pairs=1, seed=0)
    assert results["new"] == 1


def test_a_run_that_another_finished_before_the_lock_was_taken_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, first, out = write_text(tmp_path), tmp_path / "first" / "a", tmp_path / "runs" / "a"
    assert nlpstack(*command(text, first)).code == 0

    def locked(path: Path, lock: Callable[[Path], AbstractContextManager[None]] = run._locked) -> Any:
        shutil.copytree(first, path)
        return lock(path)

    monkeypatch.setattr(run, "_locked", locked)
    done = nlpstack(*command(text, out))
    assert done.fault == f"nlpstack: {out}: a run stands here; --resume goes on with it, --overwrite replaces it"
    assert tree(out) == tree(first)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged in one step", "moved aside"])
def test_a_reader_always_finds_a_whole_model(exchange: bool, tmp_path: Path) -> None:
    folder, enough = tmp_path / "run" / "model", threading.Event()
    write_models(folder, 1)
    with in_one_step(exchange):
        writer = threading.Thread(target=write_models, args=(folder, 5000, enough.wait))
        writer.start()
        try:
            seen = read_models(folder, lambda seen: writer.is_alive() and (seen.total() < 30 or len(seen) < 2))
        finally:
            enough.set()
            writer.join()
    assert seen.total() >= 30
    assert set(seen) == {0, 1}
    assert os.listdir(folder.parent) == ["model"]


def test_a_reader_always_finds_the_newest_checkpoint_whole(tmp_path: Path) -> None:
    writer = threading.Thread(target=write_checkpoints, args=(tmp_path / "checkpoints", 50))
    writer.start()
    try:
        seen = read_checkpoints(tmp_path / "checkpoints", lambda seen: writer.is_alive())
    finally:
        writer.join()
    assert len(seen) > 3
