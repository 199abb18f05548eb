"""Stop runs by SIGINT and SIGTERM wherever they are, once or twice, and go on with the command that they print.

    python -m tests.faults.signals --runs 2

Exit code 130 or 143; one line that says how to go on, which a shell takes as it is printed; and the run that goes on
ends with the weights and losses of the unbroken one, bit for bit. Exit code 1 if anything is otherwise.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tests.faults.failing import ROOT
from tests.faults.kill_and_resume import Outcome, outcome
from tests.faults.subjects import require
from tests.tiny import nlpstack, pretrain, write_text

STEPS, VAL_EVERY = 24, 6
VALUES = {
    "train__steps": STEPS,
    "train__log_every": 1,
    "train__val_every": VAL_EVERY,
    "train__checkpoint_every": 4,
    "train__compile": "false",
    "train__sample_tokens": 20,
    "eval__resamples": 2000,
}
INT, TERM = signal.SIGINT, signal.SIGTERM
Signals = Sequence[signal.Signals]
SEQUENCES: Sequence[Signals] = ((TERM,), (INT,), (INT, INT), (TERM, INT), (TERM, TERM))
MOMENTS = ("starting", "tokenizing", "settled", "step", "save", "validation", "finishing")
POLL_SECONDS = 0.0005
DEADLINE_SECONDS = 300


@dataclass(frozen=True)
class Stopped:
    """How a run ended that was sent signals."""

    code: int
    said: str  # on stderr
    moment: str
    sent: Signals


def command(text: Path, out: Path) -> list[object]:
    """A small run."""
    return pretrain(text, out, "--quiet", "--json", **VALUES)


def words_in_shell(line: str) -> list[str]:
    """The arguments of a printed nlpstack command, as bash hands them over."""
    script = "nlpstack() { printf '%s\\0' \"$@\"; }\n" + line
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return done.stdout.decode(errors="surrogateescape").split("\0")[:-1]


def is_due(moment: str, out: Path, line_wanted: int, elapsed: float, delay: float) -> bool:
    """Whether a run is where the signal shall hit it."""
    if moment == "starting":
        return elapsed > delay or (out / "config.toml").exists()
    if moment == "tokenizing":
        return any((out.parent / ".cache").glob("*"))
    if moment == "settled":
        return (out / "config.toml").exists()
    if moment == "save":
        return any((out / "checkpoints").glob(".step-*.tmp-*"))
    if moment == "finishing":
        return (out / "checkpoints" / f"step-{STEPS:08d}").exists()
    log = out / "metrics.jsonl"
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    if moment == "step":
        return len(lines) >= line_wanted
    return bool(lines) and json.loads(lines[-1])["step"] % VAL_EVERY == 0  # its validation comes next


def run_and_stop(
    words: Sequence[object], out: Path, moment: str, sent: Sequence[signal.Signals], rng: random.Random, starts: float
) -> Stopped:
    """Start a run, which takes `starts` seconds to its first step, and send it signals at a moment; its end."""
    line = [sys.executable, "-m", "nlpstack", *map(str, words)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    started, wanted, delay = time.monotonic(), rng.randrange(1, STEPS), rng.uniform(0, starts)
    while process.poll() is None and not is_due(moment, out, wanted, time.monotonic() - started, delay):
        require(time.monotonic() - started < DEADLINE_SECONDS, f"still running after {DEADLINE_SECONDS} s")
        time.sleep(POLL_SECONDS)
    time.sleep(rng.choice((0, rng.uniform(0, 0.01))))
    for number in sent:
        process.send_signal(number)
        time.sleep(rng.choice((0, rng.uniform(0, 0.03))))
    _, said = process.communicate(timeout=DEADLINE_SECONDS)
    return Stopped(process.returncode, said.removeprefix("\n"), moment, sent)  # the line stands below a terminal's ^C


def check(stopped: Stopped, words: Sequence[object], out: Path, expected: Outcome) -> str:
    """Look at how a run ended, go on with it, and compare; where it was stopped comes back."""
    described = f"exit code {stopped.code}, stderr {stopped.said!r}"
    killed = [-number for number in stopped.sent]  # before Python hears signals, or on the way out
    allowed = (
        [128 + number for number in stopped.sent] + killed + [0] * (stopped.moment in ("finishing", "save", "step"))
    )
    require(stopped.code in allowed, described)
    by_python = stopped.moment == "starting" and stopped.code == -INT  # while our command line itself is loaded
    require(by_python or ("Traceback" not in stopped.said and stopped.said.count("\n") <= 1), described)
    settled, printed = (out / "config.toml").exists(), stopped.said.partition("; go on with: ")[2]
    place = "finished" if stopped.code == 0 else "stopped" if settled else "before the first step"
    if stopped.code > 0:
        named = any(f"stopped by {number.name}" in stopped.said for number in stopped.sent)
        require(named or (not settled and "interrupted" in stopped.said), described)
        require(bool(printed) == settled, f"{described}, though the run {'stands' if settled else 'does not stand'}")
    if stopped.code in killed:
        require(not settled or len(stopped.sent) > 1, f"{described}: killed though it stands, and a single signal")
        place += ", killed"
    again = list(words) + ["--resume"] * settled
    if printed:
        again = words_in_shell(printed)
        require(again == [*map(str, words), "--resume"], f"the shell reads {again}")
    done = nlpstack(*again)
    require(done.code == 0, f"{described}; going on: exit code {done.code}: {done.err}")
    require(outcome(out) == expected, f"{described}; going on gives other weights or losses")
    left = [str(path) for path in out.rglob(".*.tmp-*")]
    require(not left, f"{described}; left over: {left}")
    return place


def torture(
    folder: Path,
    *,
    runs: int,
    seed: int,
    moments: Sequence[str] = MOMENTS,
    sequences: Sequence[Sequence[signal.Signals]] = SEQUENCES,
) -> tuple[Counter[str], int]:
    """So many runs for each moment and sequence of signals: where they were stopped, and how many were findings."""
    rng, places, found = random.Random(seed), Counter[str](), 0
    text = write_text(folder)
    unbroken, started = folder / "unbroken" / "a", time.time()
    require(nlpstack(*command(text, unbroken)).code == 0, "the unbroken run failed")
    expected, starts = outcome(unbroken), (unbroken / "config.toml").stat().st_mtime - started
    for number, (moment, sent, _) in enumerate(product(moments, sequences, range(runs))):
        out = folder / f"run-{number}" / "runs" / "a run"
        out.parent.mkdir(parents=True)
        words = command(text, out)
        names = ", ".join(one.name for one in sent)
        try:
            place = check(run_and_stop(words, out, moment, sent, rng, starts), words, out, expected)
            places[place] += 1
            print(f"{moment}: {names}: {place}, then equal to the unbroken run", flush=True)
        except AssertionError as fault:
            found += 1
            print(f"FINDING {moment}: {names}: {fault}", flush=True)
        shutil.rmtree(out.parent.parent)
    print(f"{places.total()} runs went on as never stopped: {dict(places)}; {found} findings", flush=True)
    return places, found


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2, help="of each moment and sequence of signals")
    parser.add_argument("--moment", action="append", choices=MOMENTS, help="repeatable; all if none is given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        moments = options.moment or MOMENTS
        _, found = torture(Path(name), runs=options.runs, seed=options.seed, moments=moments)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
