"""Kill runs with SIGKILL wherever they are, resume them, and compare every loss and the weights bit for bit.

    python -m tests.faults.kill_and_resume --recipe bert --runs 20 --dtype bf16 --compile

The killer shares nothing with the run but the sight of its folder. Exit code 1 if any run differs.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

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
PRETRAINED = ("gpt", "bert")
RECIPES = (*PRETRAINED, "ner", "ner-lora")


def command(out: Path, recipe: str, dtype: str, compiled: bool) -> list[str]:
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
        run_whole(_typed("pretrain", "bert", made, {**SHAPE, **short, "eval.resamples": 10}))
    return made


def _typed(stage: str, recipe: str, out: Path, values: dict[str, object], *words: str) -> list[str]:
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "nlpstack", stage, recipe, "--quiet", "--json", "--out", str(out), *settings, *words]


def outcome(out: Path) -> Outcome:
    """Weights hash and log of a finished run."""
    results = json.loads((out / "results.json").read_text())
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [{key: value for key, value in record.items() if key not in CLOCKS} for record in records]
    return Outcome(results["run"]["weights"], lines)


def run_whole(words: list[str]) -> None:
    """Run a command to its end, which must be a good one."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}")


def run_until_killed(words: list[str], out: Path, moment: str, rng: random.Random) -> str:
    """Start a run and kill it at a moment: "before" the first checkpoint, inside a "save", or around a "step".

    Returns where it was: "before", "save", "between", or "finished" if it was faster than the killer.
    """
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    started = time.monotonic()
    checkpoints, log = out / "checkpoints", out / "metrics.jsonl"
    lines = rng.randrange(1, STEPS) if moment == "step" else 1
    saves_to_pass = rng.randrange(3)  # so that not only the first save is hit
    seen: set[str] = set()
    while process.poll() is None:
        elapsed = time.monotonic() - started
        if moment == "save":
            seen |= {path.name for path in checkpoints.glob(".step-*.tmp-*")}
            due = len(seen) > saves_to_pass
        else:
            due = log.exists() and log.read_bytes().count(b"\n") >= lines
        if due:
            time.sleep(rng.uniform(0, 0.004))
            break
        if elapsed > DEADLINE_SECONDS:
            process.kill()
            raise SystemExit(f"{out}: still running after {DEADLINE_SECONDS} s")
        time.sleep(POLL_SECONDS)
    process.kill()
    _, errors = process.communicate()
    if process.returncode not in (0, -9):
        raise SystemExit(f"{out}: exit code {process.returncode}\n{errors.decode()}")
    if process.returncode == 0:
        return "finished"
    if any(checkpoints.glob(".step-*.tmp-*")):
        return "save"
    return "between" if any(checkpoints.glob("step-*")) else "before"


def torture(folder: Path, *, runs: int, dtype: str, compiled: bool, seed: int, recipe: str = "gpt") -> dict[str, int]:
    """Do `runs` killed runs beside an unbroken one; raises SystemExit at the first that differs."""
    rng = random.Random(seed)
    whole = folder / "whole"
    run_whole(command(whole, recipe, dtype, compiled))
    expected = outcome(whole)
    print(f"unbroken: weights {expected.weights}, {len(expected.lines)} log lines", flush=True)
    places: dict[str, int] = dict.fromkeys(("before", "save", "between"), 0)
    for number in range(runs):
        out = folder / f"run-{number:02d}"
        words = command(out, recipe, dtype, compiled)
        found_at: list[str] = []
        for moment in (["before"] if number % 4 == 0 else []) + (["save"] if number % 2 == 0 else ["step"]):
            place = run_until_killed(words + ["--resume"] * out.exists(), out, moment, rng)
            while place == "finished":  # nothing was killed: once more, from nothing
                shutil.rmtree(out)
                place = run_until_killed(words, out, moment, rng)
            places[place] += 1
            found_at.append(place)
        run_whole(words + ["--resume"] * out.exists())
        found = outcome(out)
        same = found == expected
        print(f"run {number:2d}: killed at {', '.join(found_at)}: weights {found.weights} equal: {same}", flush=True)
        if not same:
            for then, now in zip(expected.lines, found.lines, strict=False):
                if then != now:
                    print(f"  first difference: {then} / {now}")
                    break
            raise SystemExit(1)
        shutil.rmtree(out)
    print(
        f"{runs} of {runs} runs of {recipe} equal the unbroken one ({dtype}, compile {compiled}); killed at: {places}",
        flush=True,
    )
    return places


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="repeatable; all if none is given")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--dtype", action="append", choices=["fp32", "bf16"], help="repeatable; both if none is given")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for recipe, dtype in product(options.recipe or RECIPES, options.dtype or ["fp32", "bf16"]):
        settings = {"runs": options.runs, "compiled": options.compile, "seed": options.seed}
        with tempfile.TemporaryDirectory() as folder:
            torture(Path(folder), recipe=recipe, dtype=dtype, **settings)


if __name__ == "__main__":
    main()
