"""Kill runs with SIGKILL wherever they are, resume them, and compare every loss and the weights bit for bit.

    python -m tests.faults.kill_and_resume --recipe bert --runs 20 --dtype bf16 --compile

Every command is a process of its own, forked from one that has loaded torch and done nothing else. The killer shares
nothing with the run but the sight of its folder. Exit code 1 if any run differs.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from nlpstack.cli import run

STEPS = 60
# What a line of metrics.jsonl says of the machine and the clock, not of the run.
CLOCKS = {"seconds", "tokens_per_second", "utilisation", "memory_bytes"}
POLL_SECONDS = 0.0005
DEADLINE_SECONDS = 600


@dataclass(frozen=True)
class Outcome:
    """What a finished run left, clocks aside."""

    weights: str
    lines: list[dict[str, Any]]  # of metrics.jsonl


SHAPE = {"model.dim": 64, "model.n_layers": 2, "model.n_heads": 2, "model.max_seq_len": 64, "tokenizer.vocab_size": 600}
Mode = tuple[str, bool]  # dtype, and whether it is compiled
MODES: Sequence[Mode] = (("fp32", False), ("bf16", True), ("bf16", False), ("fp32", True))
PRETRAINED = ("gpt", "bert")
RECIPES = (*PRETRAINED, "ner", "ner-lora")


def command(out: Path, recipe: str, dtype: str, compiled: bool, threads: int) -> list[str]:
    """A small form of a recipe: two layers, dropout 0.1, a checkpoint every ten steps."""
    values = {
        "model.dropout": 0.1,
        "train.steps": STEPS,
        "train.batch_size": 8,
        "train.micro_batch": 4,
        "train.log_every": 1,
        "train.val_every": 20,
        "train.checkpoint_every": 10,
        "train.sample_tokens": 10,
        "train.dtype": dtype,
        "train.compile": str(compiled).lower(),
        "train.threads": threads,
        "eval.resamples": 50,
    }
    if recipe in PRETRAINED:
        return _typed("pretrain", recipe, out, {**SHAPE, **values, "eval.max_tokens": 4000, "eval.pseudo_tokens": 60})
    values |= {"lora.dropout": 0.1} if recipe == "ner-lora" else {}
    return _typed("finetune", recipe, out, values, "--model", str(base(out.parent)))


def base(folder: Path) -> Path:
    """The model that fine-tuning starts from: a BERT after two steps, made once."""
    made = folder / "base"
    if not made.exists():
        short = {"train.steps": 2, "train.batch_size": 8, "eval.max_tokens": 500, "eval.pseudo_tokens": 20}
        run_whole(_typed("pretrain", "bert", made, {**SHAPE, **short, "eval.resamples": 10}), folder / "base.stderr")
    return made


def _typed(stage: str, recipe: str, out: Path, values: dict[str, object], *words: str) -> list[str]:
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return [stage, recipe, "--quiet", "--json", "--out", str(out), *settings, *words]


def outcome(out: Path) -> Outcome:
    """Weights hash and log of a finished run."""
    results = json.loads((out / "results.json").read_text())
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [{key: value for key, value in record.items() if key not in CLOCKS} for record in records]
    return Outcome(results["run"]["weights"], lines)


_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["nlpstack.cli", "nlpstack.pretrain", "nlpstack.finetune"])


def _work(words: list[str], said: Path) -> None:
    with said.open("w") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.argv = ["nlpstack", *words]
    run()


def started(words: list[str], said: Path) -> ForkServerProcess:
    """The process of a command, which writes its errors to a file."""
    process = _FORKS.Process(target=_work, args=(words, said))
    process.start()
    return process


def run_whole(words: list[str], said: Path) -> None:
    """Run a command to its end, which must be a good one."""
    process = started(words, said)
    process.join(DEADLINE_SECONDS)
    if process.exitcode:
        raise SystemExit(f"nlpstack {' '.join(words)}: exit code {process.exitcode}\n{said.read_text()}")
    if process.exitcode is None:
        process.kill()
        raise SystemExit(f"nlpstack {' '.join(words)}: still running after {DEADLINE_SECONDS} s")


def run_until_killed(words: list[str], out: Path, moment: str, rng: random.Random) -> str:
    """Start a run and kill it at a moment: "before" the first checkpoint, inside a "save", or around a "step".

    Returns where it was: "before", "save", "between", or "finished" if it was faster than the killer.
    """
    said = out.with_suffix(".stderr")
    process, start = started(words, said), time.monotonic()
    checkpoints, log = out / "checkpoints", out / "metrics.jsonl"
    lines = rng.randrange(1, STEPS) if moment == "step" else 1
    saves_to_pass = rng.randrange(3)  # so that not only the first save is hit
    seen: set[str] = set()
    while process.is_alive():
        if moment == "save":
            seen |= {path.name for path in checkpoints.glob(".step-*.tmp-*")}
            due = len(seen) > saves_to_pass
        else:
            due = log.exists() and log.read_bytes().count(b"\n") >= lines
        if due:
            time.sleep(rng.uniform(0, 0.004))
            break
        if time.monotonic() - start > DEADLINE_SECONDS:
            process.kill()
            raise SystemExit(f"{out}: still running after {DEADLINE_SECONDS} s")
        time.sleep(POLL_SECONDS)
    process.kill()
    process.join()
    if process.exitcode not in (0, -9):
        raise SystemExit(f"{out}: exit code {process.exitcode}\n{said.read_text()}")
    if process.exitcode == 0:
        return "finished"
    if any(checkpoints.glob(".step-*.tmp-*")):
        return "save"
    return "between" if any(checkpoints.glob("step-*")) else "before"


def killed_and_resumed(out: Path, words: list[str], number: int, rng: random.Random) -> list[str]:
    """Kill a run once or twice, then run it to its end; where it was killed."""
    found_at: list[str] = []
    for moment in (["before"] if number % 4 == 0 else []) + (["save"] if number % 2 == 0 else ["step"]):
        place = run_until_killed(words + ["--resume"] * out.exists(), out, moment, rng)
        while place == "finished":  # nothing was killed: once more, from nothing
            shutil.rmtree(out)
            place = run_until_killed(words, out, moment, rng)
        found_at.append(place)
    run_whole(words + ["--resume"] * out.exists(), out.with_suffix(".stderr"))
    return found_at


def torture(
    folder: Path, *, runs: int, seed: int, recipe: str, modes: Sequence[Mode] = MODES, threads: int = 1
) -> dict[str, int]:
    """Do `runs` killed runs, four of a mode and then of the next, beside unbroken ones; where they were killed.

    Raises SystemExit at the first that differs.
    """
    rng, expected = random.Random(seed), dict[Mode, Outcome]()
    places: dict[str, int] = dict.fromkeys(("before", "save", "between"), 0)
    for number in range(runs):
        mode = modes[number // 4 % len(modes)]
        name = f"{mode[0]}, {'compiled' if mode[1] else 'not compiled'}"
        if mode not in expected:
            whole = folder / f"whole-{len(expected)}"
            run_whole(command(whole, recipe, *mode, threads), whole.with_suffix(".stderr"))
            expected[mode] = outcome(whole)
            print(f"{recipe}, {name}: {len(expected[mode].lines)} log lines, weights {expected[mode].weights}")
        out = folder / f"run-{number:02d}"
        found_at = killed_and_resumed(out, command(out, recipe, *mode, threads), number, rng)
        found, wanted = outcome(out), expected[mode]
        same = found == wanted
        print(f"run {number:2d}, {name}: killed at {', '.join(found_at)}: {found.weights} equal: {same}", flush=True)
        if not same:
            differences = [pair for pair in zip(wanted.lines, found.lines, strict=False) if pair[0] != pair[1]]
            raise SystemExit(f"  first difference: {differences[:1]}")
        for place in found_at:
            places[place] += 1
        shutil.rmtree(out)
    print(f"{runs} of {runs} runs of {recipe} equal the unbroken one; killed at: {places}", flush=True)
    return places


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="repeatable; all if none is given")
    parser.add_argument("--runs", type=int, default=50, help="of each recipe")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="both in turn if not given")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="with and without, if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of each run, which is too small to gain by a second")
    options = parser.parse_args()
    modes = [
        (dtype, compiled)
        for dtype, compiled in MODES
        if options.dtype in (None, dtype) and options.compile in (None, compiled)
    ]
    print(f"seed {options.seed}", flush=True)
    for recipe in options.recipe or RECIPES:
        if not (own := [mode for mode in modes if recipe in PRETRAINED or not mode[1]]):
            parser.error(f"{recipe} is never compiled")  # its batches are of many lengths
        with tempfile.TemporaryDirectory() as folder:
            given = {"runs": options.runs, "seed": options.seed, "threads": options.threads}
            torture(Path(folder), recipe=recipe, modes=own, **given)


if __name__ == "__main__":
    main()
