"""A trial of damaged input: it must end in a result or a one-line fault, in bounded time and memory."""

import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nlpstack.errors import NlpstackError
from tests.tiny import Outcome

SECONDS = 20  # of the processor, for one trial, or for each reading of it
MEMORY = 1 << 30  # bytes of address space that a trial may take on top of what is used before it
SILENT_SECONDS = 120  # that a child may take for one trial before it is ended
LONGEST = 5_000  # characters of a fault's line

ACCEPTED, REFUSED, EQUAL, FINDING = "accepted", "refused", "equal", "finding"


class Wrong(AssertionError):
    """What a trial found that must not be."""


class Trial(NamedTuple):
    """What is tried: its name says how it can be made again; what `act` gives back is EQUAL or anything."""

    name: str
    act: Callable[[], object]


class Verdict(NamedTuple):
    """How a trial ended."""

    kind: str
    text: str = ""


class _TooLong(BaseException):
    """Raised in a trial whose time is over; no Exception, so that nothing under test takes it for one of its own."""


@contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """While the block runs, its processor time and the growth of the address space are limited."""

    def over(*_: object) -> None:
        raise _TooLong

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, over)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def again(seconds: float = SECONDS) -> None:
    """Of a trial that reads its file several times, each reading has the whole time."""
    if signal.getitimer(signal.ITIMER_PROF)[0]:  # not where nothing is bounded
        signal.setitimer(signal.ITIMER_PROF, seconds)


def attempt(act: Callable[[], object], *, seconds: float = SECONDS, memory: int = MEMORY) -> Verdict:
    """How something ends: ACCEPTED (or EQUAL), REFUSED with its line, or FINDING with what was wrong."""
    try:
        with bounded(seconds, memory):
            result = act()
    except _TooLong:
        return Verdict(FINDING, f"not done after {seconds} s of the processor")
    except Wrong as error:
        return Verdict(FINDING, str(error))
    except NlpstackError as error:
        return one_line(str(error))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return Verdict(FINDING, f"{type(error).__name__}: {str(error)[:300]!r} {_where(error)}")
    if isinstance(result, Outcome):
        return command_verdict(result)
    return Verdict(EQUAL if result == EQUAL else ACCEPTED)


def _where(error: BaseException) -> str:
    """The last line of our own code that an error came through."""
    found, step = "", error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if "/nlpstack/" in name:
            found = f"at nlpstack/{name.rpartition('/nlpstack/')[2]}:{step.tb_lineno}"
        step = step.tb_next
    return found


def one_line(message: str) -> Verdict:
    """REFUSED where a message is one line that a terminal can show."""
    if len(message.splitlines()) != 1 or not message.isprintable():
        return Verdict(FINDING, f"a message that is not one plain line: {message[:300]!r}")
    if len(message) > LONGEST:
        return Verdict(FINDING, f"a message of {len(message):,} characters: {message[:100]!r}")
    return Verdict(REFUSED, message)


def command_verdict(done: Outcome) -> Verdict:
    """The same of a command: exit code 0, or 2 with one line behind what was said before."""
    if done.code == 0:
        return Verdict(ACCEPTED)
    last = done.err.removesuffix("\n").rpartition("\n")[2]
    if done.code != 2 or done.out or not last.startswith("nlpstack: ") or "Traceback" in done.err:
        return Verdict(FINDING, f"exit code {done.code}: {done.err[-400:]!r}")
    return one_line(last)


@dataclass
class Tally:
    """How many trials ended in which way, and what was found."""

    counts: Counter[str] = field(default_factory=Counter)
    by_group: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def add(self, name: str, verdict: Verdict) -> None:
        """Count a trial; the first word of its name is its group."""
        self.counts[verdict.kind] += 1
        self.by_group.setdefault(name.split()[0], Counter())[verdict.kind] += 1
        if verdict.kind == FINDING:
            self.findings.append(f"{name}: {verdict.text}")

    def show(self) -> None:
        """Print the groups, the findings and the sum."""
        for group, counts in self.by_group.items():
            print(f"{group:26} {_line(counts)}")
        for found in self.findings:
            print(f"FINDING {found}")
        print(f"{self.counts.total():,} trials: {_line(self.counts)}", flush=True)


def _line(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[kind]:,} {kind}" for kind in (ACCEPTED, EQUAL, REFUSED, FINDING))


Make = Callable[[int, Path, random.Random], Trial]  # number, an empty folder, what to draw from -> a trial


def drawn(make: Make, number: int, seed: int, folder: Path) -> Trial:
    """Trial `number` of a seed, in a folder of its own."""
    folder.mkdir()
    return make(number, folder, random.Random(f"{seed}-{number}"))


def run_here(make: Make, n: int, seed: int, folder: Path) -> Tally:
    """Do trials in this process, whatever they end in."""
    tally = Tally()
    for number in range(n):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            trial = drawn(make, number, seed, Path(place) / "trial")
            tally.add(trial.name, attempt(trial.act))
    return tally


def run_apart(make: Make, n: int, seed: int, folder: Path) -> Tally:
    """Do trials in a child process, and in a new one behind each that ended the child or made it hang."""
    tally, number = Tally(), 0
    while number < n:
        reading, writing = os.pipe()
        sys.stdout.flush()
        if not (child := os.fork()):
            os.close(reading)
            _work(make, range(number, n), seed, folder, writing)
        os.close(writing)
        number = _listen(reading, child, tally, number)
    return tally


def _work(make: Make, numbers: range, seed: int, folder: Path, pipe: int) -> None:
    """What the child does: a line before each trial with its name, and one behind it."""
    code = 1
    try:
        with open(pipe, "w", encoding="utf-8") as told:
            for number in numbers:
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    trial = drawn(make, number, seed, Path(place) / "trial")
                    print(json.dumps([number, trial.name]), file=told, flush=True)
                    verdict = attempt(trial.act)
                print(json.dumps([number, trial.name, *verdict]), file=told, flush=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _listen(pipe: int, child: int, tally: Tally, number: int) -> int:
    """Count what a child tells; the number of the trial that comes next."""
    name, hung, rest = f"unnamed {number}", False, b""
    while True:
        if not select.select([pipe], [], [], SILENT_SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
            hung = True
            break
        if not (data := os.read(pipe, 1 << 16)):
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            told: Any = json.loads(line)
            name = told[1]
            if len(told) > 2:
                tally.add(name, Verdict(*told[2:]))
                number = told[0] + 1
                name = f"unnamed {number}"
    os.close(pipe)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if hung or status:
        why = f"not done after {SILENT_SECONDS} s" if hung else f"ended its process with {status}"
        tally.add(name, Verdict(FINDING, why))
        number += 1
    return number


def main(about: str, make_in: Callable[[Path], Make], n: int) -> None:
    """Read --n and --seed, do the trials, print how they ended; exit code 1 if anything was found."""
    parser = ArgumentParser(description=about)
    parser.add_argument("--n", type=int, default=n, help="trials [default: %(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tally = run_apart(make_in(place), options.n, options.seed, place)
    tally.show()
    print(f"{time.monotonic() - started:.0f} s")
    raise SystemExit(1 if tally.findings else 0)
