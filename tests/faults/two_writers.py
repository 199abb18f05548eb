"""Start pairs of commands at one moment on one run folder, and read folders while they are written again and again.

    python -m tests.faults.two_writers --pairs 20 --saves 200

Of a pair one proceeds and ends as a lone run does, bit for bit; the other is refused with exit code 2 and one line. A
reader of a model folder, or of the newest checkpoint, sees whole ones only. Exit code 1 if anything is otherwise.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from nlpstack import files
from nlpstack.errors import CheckpointError
from nlpstack.hub import load_model, save_model, weights_hash
from nlpstack.model import GPT
from nlpstack.train.checkpoint import KEPT, Checkpoint, Checkpoints
from tests.faults.failing import ROOT
from tests.faults.kill_and_resume import outcome
from tests.faults.subjects import SHAPE, require
from tests.tiny import nlpstack, pretrain, write_text

# Loads all that a run loads, then waits for the word to start, so that two of them start at one moment.
WAITING = """
import sys
import nlpstack.pretrain
from nlpstack.cli import run
print("ready", flush=True)
sys.stdin.readline()
run()
"""
KINDS = ("new", "--resume", "--overwrite", "one cache")
DEADLINE_SECONDS = 300
VALUES = {"train__steps": 6, "train__val_every": 2, "train__checkpoint_every": 2, "train__compile": "false"}
PAUSE_SECONDS = 0.01  # between two saves: a writer that does nothing else would leave a reader no time


def command(text: Path, out: Path, *words: object) -> list[object]:
    """A small run."""
    return pretrain(text, out, "--quiet", "--json", *words, **VALUES)


def start_together(commands: Sequence[Sequence[object]], delays: Sequence[float]) -> list[tuple[int, str]]:
    """Exit code and stderr of commands that begin their work at one moment, or so many seconds after it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = []
    for words in commands:
        line = [sys.executable, "-c", WAITING, *map(str, words)]
        processes.append(subprocess.Popen(line, cwd=ROOT, **pipes))
    for process in processes:
        require(process.stdout.readline() == "ready\n", "a process did not start")
    for process, delay in sorted(zip(processes, delays, strict=True), key=lambda pair: pair[1]):
        time.sleep(delay)
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=DEADLINE_SECONDS) for process in processes]
    return [(process.returncode, said) for process, (_, said) in zip(processes, ended, strict=True)]


def pair(kind: str, folder: Path, text: Path, delay: float) -> list[tuple[int, str]]:
    """Two processes on one run folder, or with `kind` "one cache" on two folders that share their tokens."""
    out = folder / "runs" / "a"
    if kind in ("--resume", "--overwrite"):
        (code, said), *_ = start_together([command(text, out)], [0])
        require(code == 0, said)
    if kind == "--resume":  # as killed before its last checkpoint was written
        (out / "results.json").unlink()
        shutil.rmtree(max((out / "checkpoints").iterdir()))
    flags = [kind] if kind.startswith("--") else []
    outs = [out, folder / "runs" / "b" if kind == "one cache" else out]
    return start_together([command(text, one, *flags) for one in outs], [0, delay])


def torture_pairs(folder: Path, *, pairs: int, seed: int) -> Counter[str]:
    """So many pairs, of all kinds in turn; AssertionError at the first that goes wrong."""
    rng, results = random.Random(seed), Counter[str]()
    text = write_text(folder)
    lone = nlpstack(*command(text, folder / "lone" / "a"))
    require(lone.code == 0, lone.err)
    expected = outcome(folder / "lone" / "a")
    for number in range(pairs):
        kind, delay = KINDS[number % len(KINDS)], rng.choice((0, 0, rng.uniform(0, 0.02), rng.uniform(0, 0.5)))
        place = folder / f"pair-{number}"
        (code, said), (other_code, other_said) = pair(kind, place, text, delay)
        if kind == "one cache":
            require((code, other_code) == (0, 0), f"{said}{other_said}")
            require(outcome(place / "runs" / "b") == expected, "the second run's weights or losses differ")
        else:
            require(
                sorted((code, other_code)) == [0, 2], f"{kind}: exit codes {code}, {other_code}: {said}{other_said}"
            )
            refused = said if code else other_said
            require(refused.count("\n") == 1 and "Traceback" not in refused, refused)
            why = "another process is writing this run" if "another process" in refused else "a run stands here"
            require(why in refused and str(place) in refused, refused)
            results[f"refused: {why}"] += 1
        require(outcome(place / "runs" / "a") == expected, f"{kind}: weights or losses differ from the lone run's")
        left = [str(path) for path in place.rglob(".*.tmp-*")]
        require(not left, f"{kind}: left over: {left}")
        results[kind] += 1
        print(f"pair {number:2d}: {kind}, {delay * 1000:.0f} ms apart: exit codes {code} and {other_code}", flush=True)
        shutil.rmtree(place)
    print(f"{pairs} of {pairs} pairs: one writer each, which ended as the lone run: {dict(results)}", flush=True)
    return results


# -- readers ---------------------------------------------------------------------------------------------------------


@contextmanager
def in_one_step(exchange: bool) -> Iterator[None]:
    """Folders are exchanged by the system, or as where it cannot: moved aside."""
    with mock.patch.object(files, "_exchange", files._exchange if exchange else lambda first, second: False):
        yield


def models() -> list[GPT]:
    """The two models that take turns in one folder."""
    return [GPT.create(SHAPE, seed=seed) for seed in (0, 1)]


def write_models(folder: Path, saves: int, enough: Callable[[float], bool | None] = time.sleep) -> None:
    """Save the two models in turn; `enough` waits that many seconds, and may say that the reader has seen enough."""
    both = models()
    for number in range(saves):
        save_model(both[number % 2], folder)
        if enough(PAUSE_SECONDS):
            break


def read_models(folder: Path, going: Callable[[Counter[int]], bool]) -> Counter[int]:
    """How often each of the two models was found while `going` is true; raises where one is not whole."""
    weights = [one.transformer.tokens.weight for one in models()]
    with tempfile.TemporaryDirectory() as scratch:
        for number, one in enumerate(models()):
            save_model(one, Path(scratch, str(number)))
        known = {weights_hash(Path(scratch, str(number))) for number in range(len(weights))}
    seen: Counter[int] = Counter()
    while going(seen):
        found = load_model(folder.parent).transformer.tokens.weight
        (which,) = [number for number, one in enumerate(weights) if torch.equal(one, found)]
        seen[which] += 1
        require(weights_hash(folder) in known, "weights of neither of the two models")
    return seen


def _checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        {"w": torch.full((5000,), float(step))}, {"w.m": torch.full((5000,), -float(step))}, {"step": step}
    )


def write_checkpoints(folder: Path, saves: int) -> None:
    """Save checkpoints one after the other."""
    for step in range(1, saves + 1):
        Checkpoints(folder).save(_checkpoint(step), best_step=None)
        time.sleep(PAUSE_SECONDS)


def read_checkpoints(folder: Path, going: Callable[[Counter[int]], bool]) -> Counter[int]:
    """Steps of the newest checkpoint, how often each was read; raises where one is not whole while it is kept."""
    checkpoints, seen = Checkpoints(folder), Counter[int]()
    while going(seen):
        for step in checkpoints.steps()[-1:]:
            try:
                found = checkpoints.load(step)
            except CheckpointError:
                require(
                    step not in checkpoints.steps()[-KEPT:], f"step {step}'s checkpoint is the newest, and not whole"
                )
                continue
            require(bool((found.model["w"] == step).all()) and bool((found.optimizer["w.m"] == -step).all()), "mixed")
            seen[step] += 1
    return seen


def torture_readers(folder: Path, *, saves: int) -> None:
    """Read while another process saves; AssertionError at the first reading that is not whole."""
    for what in ("model", "model moved aside", "checkpoints"):
        place = folder / what.replace(" ", "-") / "run" / "model"
        place.parent.mkdir(parents=True)
        if what != "checkpoints":
            save_model(models()[0], place)
        words = ["--write", what, "--folder", str(place), "--saves", str(saves)]
        writer = subprocess.Popen([sys.executable, "-m", "tests.faults.two_writers", *words], cwd=ROOT)
        read = read_checkpoints if what == "checkpoints" else read_models
        seen = read(place, lambda _, writer=writer: writer.poll() is None)
        require(writer.returncode == 0, "the writer ended badly")
        require(what == "checkpoints" or [one.name for one in place.parent.iterdir()] == ["model"], "something is left")
        require(len(seen) > 1, f"the reader saw nothing change in {sum(seen.values())} readings")
        states = f"{seen[0]} of one and {seen[1]} of the other" if what != "checkpoints" else f"of {len(seen)} steps"
        print(f"{what}: {saves} saves by one process, {sum(seen.values())} whole readings by another ({states})")


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--saves", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write == "checkpoints":
        write_checkpoints(options.folder, options.saves)
    elif options.write:
        with in_one_step(options.write == "model"):
            write_models(options.folder, options.saves)
    else:
        print(f"seed {options.seed}", flush=True)
        with tempfile.TemporaryDirectory() as name:
            torture_pairs(Path(name), pairs=options.pairs, seed=options.seed)
            torture_readers(Path(name), saves=options.saves)


if __name__ == "__main__":
    main()
