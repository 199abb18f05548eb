"""Watch a long run from outside: its memory, open files, threads and temporary files must not grow.

    python -m tests.faults.long_run --steps 10000

The run logs, validates, writes texts and saves checkpoints at intervals. Exit code 1 if anything grows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from nlpstack.train.checkpoint import KEPT
from tests.faults.failing import ROOT
from tests.tiny import pretrain, write_text

POLL_SECONDS = 0.02
WARM_UP = 0.2  # of the steps: allocators, caches and lazy imports have settled by then
GROWTH = 0.01  # of the memory held after it
LOOKS = 20  # validations and checkpoints over the run


class Sample(NamedTuple):
    """What a process holds after so many steps."""

    step: int
    memory: int  # bytes resident
    files: int  # open descriptors
    threads: int
    temporary: int  # files in the folder for temporary ones
    entries: int  # files in the run's folder beside its checkpoints
    checkpoints: int


def look(pid: int, step: int, out: Path, temporary: Path) -> Sample | None:
    """A sample of a process; None once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        memory = int(fields["VmRSS"].split()[0]) * 1024
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, KeyError):
        return None
    own = [*out.glob("*"), *out.glob("model/*")]
    count = [sum(path.is_file() for path in paths) for paths in (temporary.rglob("*"), own)]
    saved = sum(1 for _ in out.glob("checkpoints/*"))
    return Sample(step, memory, files, int(fields["Threads"]), *count, saved)


def last_step(log: Path) -> int:
    """The step of the last whole line of a log; 0 if there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 4000))
            lines = file.read().split(b"\n")
    except OSError:
        return 0
    return int(json.loads(lines[-2])["step"]) if len(lines) > 2 else 0


def watch(folder: Path, steps: int, **values: object) -> list[Sample]:
    """Samples of a run in a process of its own, one each time it has logged."""
    out, temporary, every = folder / "runs" / "long", folder / "temporary", max(1, steps // LOOKS)
    temporary.mkdir()
    chosen = {"train__steps": steps, "train__val_every": every, "train__checkpoint_every": every, **values}
    chosen |= {"train__log_every": max(1, steps // 200), "eval__max_tokens": 2000, "train__compile": "false"}
    words = pretrain(write_text(folder), out, "--quiet", **chosen)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "nlpstack", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    samples: list[Sample] = []
    while process.poll() is None:
        step = last_step(out / "metrics.jsonl")
        if step > (samples[-1].step if samples else 0):
            sample = look(process.pid, step, out, temporary)
            samples += [sample] if sample else []
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {process.stderr.read().decode()}")
    return samples


def growth(samples: Sequence[Sample], steps: int, allowed: float = GROWTH) -> tuple[str, list[str]]:
    """What the run held early and late, as a line, and what of it grew: a finding each.

    Compared are the medians of the tenth after the warm-up and of the last tenth; memory may grow by `allowed`, and
    checkpoints to the newest ones and the best, which is among these at first.
    """
    settled = [sample for sample in samples if WARM_UP * steps < sample.step < steps]  # the last step also evaluates
    size = max(1, len(settled) // 8)
    if len(settled) < 8:
        return "", [f"only {len(settled)} samples after the warm-up"]
    found, told = [], []
    for name in Sample._fields[1:]:
        early, late = (median(getattr(one, name) for one in part) for part in (settled[:size], settled[-size:]))
        most = max(getattr(one, name) for one in settled)
        unit = 2**20 if name == "memory" else 1
        share = f" ({late / early - 1:+.2%})" if name == "memory" else ""
        told.append(f"{name} {early / unit:.1f} to {late / unit:.1f}{share}, at most {most / unit:.1f}")
        # A save has files open, and a folder beside the others, while it is made: the middle does not show it.
        most_held = {"memory": early * (1 + allowed), "checkpoints": KEPT + 1}.get(name, early)
        if late > most_held:
            found.append(f"{name} grew from {early / unit:.1f} to {late / unit:.1f}")
    return f"{len(samples)} samples of {steps:,} steps: " + "; ".join(told), found


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--growth", type=float, default=GROWTH, help="share by which memory may grow")
    options = parser.parse_args()
    if sys.platform != "linux":
        print("left out: what a process holds is read from /proc, on Linux only")
        return
    with tempfile.TemporaryDirectory() as folder:
        line, found = growth(watch(Path(folder), options.steps), options.steps, options.growth)
    print(line)
    for finding in found:
        print(f"FINDING {finding}")
    print(f"{len(found)} findings")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
