"""Measures us and peers in turn (A B A B ...) in one call: readings ten minutes apart differ on a shared machine.

`alternate` is for two pieces of work in this process, `compare` for sides that are processes of their own.

A side is a program that calls `Gauge.step` after each piece of work. It warms up, then waits; asked for a reading, it
does so many pieces more and says how fast. So start, import and compiling are paid once, the sides share neither
allocator nor threads, and while one is measured the others sleep.
"""

import argparse
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

_MARK = "reading "  # begins a line that is for the harness; libraries print what they like
_SHOWN_LINES = 15  # of what a side that failed said
ENV = {**os.environ, "HF_HUB_OFFLINE": "1"}  # of the sides


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options that every comparison has. From now on a program that is told to end ends its sides first."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--pairs", type=int, default=5, help="rounds, each with a reading of every side")
    found.add_argument("--quick", action="store_true", help="tiny shapes and one round: does it run at all")
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return found


class Gauge:
    """A side's half of the talk with the harness."""

    def __init__(self, *, warmup: int, steps: int, device: str = "cpu", **facts: Any) -> None:
        """Readings of `steps` pieces of work after `warmup` of them; `facts` come with each reading."""
        self._left, self._steps, self._device, self._facts = warmup, steps, device, facts
        self._done: Any = 0
        self._started = time.perf_counter()

    def step(self, amount: Any) -> bool:
        """Count a piece of work, a number or a tensor of one; False once no reading is asked for any more."""
        self._done, self._left = self._done + amount, self._left - 1
        if self._left > 0:
            return True
        self._wait()
        rate = float(self._done) / (time.perf_counter() - self._started)
        tell(rate=rate, memory=peak_memory(self._device), **self._facts)
        if not sys.stdin.readline():
            return False
        self._done, self._left, self._started = 0, self._steps, time.perf_counter()
        return True

    def _wait(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()


def tell(**found: Any) -> None:
    """Say something to the harness."""
    print(_MARK + json.dumps(found), flush=True)


def missing(package: str) -> None:
    """End a side whose package is not installed; the table says so."""
    tell(missing=package)
    sys.exit(0)


def peak_memory(device: str) -> int:
    """The most bytes that this process held: of the GPU, else of its own."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Side:
    """A running side, seen from the harness."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it; `warm` waits until it has warmed up."""
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - held as long as the process
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._said, text=True, env=ENV)
        self.facts: dict[str, Any] = {}

    def warm(self) -> "Side":
        """Wait for its first answer."""
        self.facts = self.answer()
        return self

    def answer(self) -> dict[str, Any]:
        """What it tells next; RuntimeError with its last words if it ended instead."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return json.loads(line.removeprefix(_MARK))
        self._said.seek(0)
        last = "".join(self._said.readlines()[-_SHOWN_LINES:])
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}:\n{last}")

    def reading(self) -> dict[str, Any]:
        """Have it do a reading's work."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it; it has told all there is."""
        self._process.kill()
        self._process.wait()
        self._said.close()


class Turns(NamedTuple):
    """Seconds of each pair of turns."""

    ours: list[float]
    peer: list[float]

    def row(self, name: str, units: float, unit: str) -> str:
        """A row of the table under TURNS_HEADER; `units` are done in a turn."""
        ratios = [peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]
        speeds = (f"{units / statistics.median(seconds):,.1f}" for seconds in self)
        return f"| {name} | {spread(ratios)} | {' | '.join(speeds)} | {unit} |"


TURNS_HEADER = "| what | ours / peer (smallest to largest) | ours | peer | unit |\n|---|--:|--:|--:|---|"
Work = Callable[[], object]  # does a piece of work once
Clock = Callable[[], float]


def alternate(ours: Work, peer: Work, pairs: int, *, clock: Clock = time.perf_counter) -> Turns:
    """Both in turn, `pairs` times, after one turn each that does not count.

    `clock` is time.process_time for work of one thread: other work on the machine takes none of it.
    """
    turns = Turns([], [])
    for number in range(-1, pairs):
        for work, seconds in zip((ours, peer), turns, strict=True):
            started = clock()
            work()
            if number >= 0:
                seconds.append(clock() - started)
    return turns


def ask(command: Sequence[str]) -> dict[str, Any]:
    """The one answer of a side that gives no readings."""
    side = Side(command)
    try:
        return side.answer()
    finally:
        side.close()


def spread(ratios: Sequence[float]) -> str:
    """The median, with the smallest and the largest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def header(unit: str) -> str:
    """The table's head, for rates of `unit` a second."""
    columns = f"ours / peer (smallest to largest) | ours, {unit}/s | peer, {unit}/s | peak, ours | peak, peer | memory"
    names = f"what | peer | {columns} | utilisation, ours | peer"
    return f"| {names} |\n|---|---|{'--:|' * (names.count('|') - 1)}"


def compare(
    name: str, ours: Sequence[str], peers: Mapping[str, Sequence[str]], *, pairs: int, together: bool = False
) -> None:
    """Measure our side and each peer in turn, and print a row of the table for every peer.

    They warm up one after the other or, where there are cores for all and compiling takes long, `together`.
    """
    sides: dict[str, Side] = {}
    try:
        for peer, command in {"": ours, **peers}.items():
            sides[peer] = Side(command)
            if not together:
                sides[peer].warm()
        if together:
            for side in sides.values():
                side.warm()
        measured = [peer for peer, side in sides.items() if "missing" not in side.facts]
        rounds = [{peer: sides[peer].reading() for peer in measured} for _ in range(pairs)]
    finally:
        for side in sides.values():
            side.close()
    for peer in peers:
        print(_row(name, peer, rounds, sides[peer].facts), flush=True)


def _row(name: str, peer: str, rounds: Sequence[Mapping[str, Mapping[str, Any]]], facts: Mapping[str, Any]) -> str:
    own = [one[""] for one in rounds]
    cells = [name, peer]
    if "missing" in facts:
        other, blank = [], f"{facts['missing']} not installed"
        cells.append(blank)
    else:
        other, blank = [one[peer] for one in rounds], ""
        cells.append(spread([mine["rate"] / its["rate"] for mine, its in zip(own, other, strict=True)]))
    rates = [statistics.median(one["rate"] for one in side) if side else None for side in (own, other)]
    peaks = [max(one["memory"] for one in side) if side else None for side in (own, other)]
    cells += [f"{rate:,.0f}" if rate else blank for rate in rates]
    cells += [f"{peak / 2**20:,.0f} MiB" if peak else blank for peak in peaks]
    cells.append(f"{peaks[0] / peaks[1]:.2f}" if peaks[0] and peaks[1] else blank)
    share = own[0].get("utilisation_of_one")  # of a unit a second
    cells += [f"{rate * share:.1%}" if rate and share else blank for rate in rates]
    return f"| {' | '.join(cells)} |"


def describe(device: str, packages: Sequence[str] = ("torch", "transformers", "peft")) -> str:
    """Date, processor and versions, as a line above a table."""
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    where = f"{len(names)} x {names[0]}" if names else platform.processor()
    if device == "cuda":
        import torch

        where = f"{torch.cuda.get_device_name()}, {where}"
    python = f"Python {platform.python_version()}"
    return f"{date.today()}, {where}, {python}, {', '.join(versions)}"
