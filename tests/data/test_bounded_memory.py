"""Tokenizing holds no more of a large corpus than of a small one, and a process killed on the way loses one shard."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

MB = 1_000_000
LINE = "the lady doth protest too much, methinks; " * 60


def write_corpus(folder: Path, n_bytes: int) -> Path:
    """A folder of .jsonl and .txt files of about so many bytes."""
    folder.mkdir()
    for number in range(2):
        with open(folder / f"{number}.jsonl", "w", encoding="utf-8") as file:
            for row in range(n_bytes // 4 // len(LINE)):
                file.write(json.dumps({"text": f"{number} {row} {LINE}"}) + "\n")
        with open(folder / f"{number}.txt", "w", encoding="utf-8") as file:
            for row in range(n_bytes // 4 // len(LINE)):
                file.write(f"{row} {LINE}\n")
    return folder


def start(corpus: Path, cache: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "benchmarks/tokenizing.py", "peak", str(corpus), str(cache)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_peak_is_the_same_for_a_corpus_six_times_as_large(tmp_path: Path) -> None:
    peaks = []
    for n_bytes in (16 * MB, 96 * MB):  # from about 20 MB on it holds as much as it ever will
        out, err = start(write_corpus(tmp_path / str(n_bytes), n_bytes), tmp_path / f"cache-{n_bytes}").communicate()
        found = json.loads(out)
        assert found["bytes"] > 0.9 * n_bytes, err
        peaks.append(found["peak"])
    assert peaks[1] - peaks[0] < 16 * MB  # holding the tokens would take 66


@pytest.mark.slow
def test_a_killed_process_goes_on_at_its_last_whole_shard(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 45 * MB)
    killed = start(corpus, tmp_path / "cache")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cache/*/shard-00001.npy")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    (folder,) = (tmp_path / "cache").iterdir()
    assert not (folder / "index.json").exists()
    out, err = start(corpus, tmp_path / "cache").communicate()
    assert "tokenizing goes on after" in err
    assert not list(folder.glob(".*"))  # the shard that was being written is gone
    assert "tokenized before" in start(corpus, tmp_path / "cache").communicate()[1]
    whole, _ = start(corpus, tmp_path / "whole").communicate()
    assert json.loads(out)["tokens"] == json.loads(whole)["tokens"]
    (other,) = (tmp_path / "whole").iterdir()
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*.npy")} == {
        path.name: path.read_bytes() for path in other.glob("shard-*.npy")
    }
