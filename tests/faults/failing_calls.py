"""Let every write, fsync, rename, creation, deletion and listing of a save fail in turn, and look at what is left.

    python -m tests.faults.failing_calls
    python -m tests.faults.failing_calls --only pretrain --every 5

A library that is loaded before the C library makes call number n fail, n = 1, 2, ... to the last. Of each save: the
error is one line that names the place and what the system said, a reader finds the old state or the new one whole, and
the same save then succeeds. Of whole runs on a disk that fills up: exit code 2, one line, and once there is room
--resume ends with the weights of the unbroken run. Exit code 1 if anything is otherwise.
"""

import argparse
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from nlpstack.hub import load_model
from nlpstack.train.checkpoint import Checkpoints
from nlpstack.train.run import read_record, read_results
from tests.faults import failing
from tests.faults.failing import CHANGES, FULL, KINDS, Calls
from tests.faults.kill_and_resume import Outcome, outcome
from tests.faults.subjects import Subject, require, subjects
from tests.tiny import nlpstack, pretrain, tree, write_text

ERRORS = {"once": (errno.EIO, errno.EACCES), "from then on": (errno.ENOSPC, errno.EDQUOT, errno.EROFS)}
MOUNTED_KB = 65536
VALUES = {"train__log_every": 1, "train__val_every": 2, "train__checkpoint_every": 2, "train__compile": "false"}


def said_well(fault: Exception, folder: Path, error: int) -> None:
    """Raise AssertionError unless the command line makes one line of an error, which says what happened and where."""
    with mock.patch("nlpstack.eval.evaluate", side_effect=fault):
        done = nlpstack("eval", "--quiet")
    require(done.code == 2 and done.err.count("\n") == 1, f"{type(fault).__name__}: exit code {done.code}: {done.err}")
    require(str(folder) in done.fault and os.strerror(error) in done.fault, f"does not say what or where: {done.err}")


Way = tuple[tuple[int, ...], int, int, bool]  # the kinds of calls, which of them fails first, how, and all later too


def names_in(folder: Path) -> set[str]:
    """Everything below a folder but what is hidden."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in names if not any(part.startswith(".") for part in name.split("/"))}


def attempt(calls: Calls, subject: Subject, folder: Path, names: set[str], how: Way) -> str:
    """One save with failing calls; whether it was "refused" or went on ("passed over"). AssertionError: a finding.

    `names` is what stands in the folder after an undisturbed save.
    """
    kinds, n, error, onward = how
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    subject.prepare(folder)
    fault: Exception | None = None
    calls.set(folder, kinds, n, error, onward=onward)
    try:
        subject.save(folder)
    except Exception as caught:
        fault = caught
    refused, where = calls.refused, calls.last
    calls.clear()
    require(refused > 0, "no call was reached")
    try:
        if fault is not None:
            said_well(fault, folder, error)
        state = "old" if fault is not None and not any(folder.iterdir()) else subject.read(folder)
        require(fault is not None or state == "new", "no error, and the old state")
        subject.save(folder)
        require(subject.read(folder) == "new", "saving again leaves the old state")
        require(names_in(folder) == names, f"stray or missing: {sorted(names_in(folder) ^ names)}")
    except Exception as found:
        raised = "".join(traceback.format_exception(fault)) if fault else "no error\n"
        raise AssertionError(f"{found!r}\nlast call on {where}; what was raised: {raised}") from found
    return "refused" if fault is not None else "passed over"


def each_call(
    calls: Calls, subject: Subject, folder: Path, *, every: int = 1, start: int = 1
) -> tuple[Counter[str], int]:
    """Let each call of a save fail in every way; what came of it, by kind and outcome, and how many were findings."""
    folder.mkdir()
    subject.prepare(folder)
    calls.set(folder, ())
    subject.save(folder)
    counts, found = dict(calls.counts), 0
    calls.clear()
    wanted = names_in(folder)
    ways = [((kind,), n, error, False) for kind in KINDS.values() for error in ERRORS["once"]
            for n in range(start, list(counts.values())[kind] + 1, every)]  # fmt: skip
    for kinds in (FULL, CHANGES):
        total = sum(list(counts.values())[kind] for kind in kinds)
        errors = [error for error in ERRORS["from then on"] if (error == errno.EROFS) == (kinds == CHANGES)]
        ways += [(kinds, n, error, True) for error in errors for n in range(start, total + 1, every)]
    results: Counter[str] = Counter()
    for how in ways:
        try:
            results[attempt(calls, subject, folder, wanted, how)] += 1
        except AssertionError as fault:
            found += 1
            names = "+".join(name for name, kind in KINDS.items() if kind in how[0])
            then = " and all later" * how[3]
            print(f"FINDING {subject.name}: {names} {how[1]}{then} with {errno.errorcode[how[2]]}: {fault}", flush=True)
    shutil.rmtree(folder)
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    print(f"{subject.name}: {told}; {dict(results)}, {found} findings", flush=True)
    return results, found


# -- whole runs ------------------------------------------------------------------------------------------------------


def words_of(text: Path, out: Path) -> list[object]:
    """The command that is tried: five steps, two checkpoints on the way, three validations."""
    return pretrain(text, out, "--quiet", "--json", **VALUES)


def whole_or_absent(out: Path) -> None:
    """Raise unless whatever of a run stands under a name of its own can be read."""
    checkpoints = Checkpoints(out / "checkpoints")
    for step in checkpoints.steps():
        checkpoints.load(step)
    if (out / "model").exists():
        load_model(out)
    read_record(out)
    require(not (out / "results.json").exists() or bool(read_results(out)), "half a results.json")


def refused_and_resumed(text: Path, out: Path, expected: Outcome, stop: object, error: int) -> str:
    """Run on a disk that is full, `stop()` says when room is made, run on; what happened: "refused" or "finished"."""
    done = nlpstack(*words_of(text, out))
    stop()
    if done.code == 0:  # only the picture may be missing
        require(outcome(out) == expected, "finished, with other weights or losses")
        return "finished"
    require(done.code == 2 and done.err.count("\n") == 1, f"exit code {done.code}: {done.err}")
    line = done.fault
    require(str(out.parent) in line and os.strerror(error) in line, f"does not say what or where: {line}")
    whole_or_absent(out)
    again = nlpstack(*words_of(text, out), *["--resume"] * (out / "config.toml").exists())
    require(again.code == 0, f"with room: exit code {again.code}: {again.err}")
    require(outcome(out) == expected, f"with room: other weights or losses than of the unbroken run, after: {line}")
    left = [str(path) for path in out.rglob(".*.tmp-*")]
    require(not left, f"left over: {left}")
    return "refused"


@contextmanager
def counting(label: str, results: Counter[str]) -> Iterator[None]:
    """Count and print a finding inside the block, and go on after it."""
    try:
        yield
    except AssertionError as fault:
        results["findings"] += 1
        print(f"FINDING {label}: {fault}", flush=True)


def unbroken(calls: Calls, text: Path, room: Path, kinds: tuple[int, ...]) -> tuple[Outcome, int]:
    """What an undisturbed run leaves, and how many calls of these kinds it makes."""
    calls.set(room, kinds)
    done = nlpstack(*words_of(text, room / "runs" / "a"))
    counts = list(calls.counts.values())
    calls.clear()
    require(done.code == 0, done.err)
    return outcome(room / "runs" / "a"), sum(counts[kind] for kind in kinds)


def full_disk(calls: Calls, folder: Path, *, every: int, seed: int) -> Counter[str]:
    """A disk that is full from the n-th call of a whole run on, for every n, or each `every`-th from a random one."""
    room = folder / "room"
    room.mkdir()
    text = write_text(folder)
    expected, total = unbroken(calls, text, room, FULL)
    results: Counter[str] = Counter()
    for n in range(random.Random(seed).randrange(every) + 1, total + 1, every):
        shutil.rmtree(room)
        room.mkdir()
        calls.set(room, FULL, n, errno.ENOSPC, onward=True)
        with counting(f"pretrain, disk full at call {n} of {total}", results):
            results[refused_and_resumed(text, room / "runs" / "a", expected, calls.clear, errno.ENOSPC)] += 1
        calls.clear()
    print(f"pretrain on a disk full from call n of {total} on: {dict(results)}", flush=True)
    return results


def refusing_folder(calls: Calls, folder: Path) -> Counter[str]:
    """Folders where nothing may be written: a new run, a resumed one and one to replace change nothing."""
    room, results = folder / "read-only", Counter[str]()
    room.mkdir()
    text = write_text(folder)
    for state in ("nothing there", "stopped before its end", "finished"):
        if state == "stopped before its end":
            require(nlpstack(*words_of(text, room / "runs" / "a")).code == 0, "no run to try it on")
            (room / "runs" / "a" / "results.json").unlink()
        elif state == "finished":
            require(nlpstack(*words_of(text, room / "runs" / "a"), "--resume").code == 0, "cannot be finished")
        flags = {"nothing there": [[]], "stopped before its end": [["--resume"], ["--overwrite"]]}
        for flag in flags.get(state, [["--overwrite"], ["--resume"]]):
            for error in (errno.EROFS, errno.EACCES, errno.EDQUOT):
                before = tree(room)
                calls.set(room, CHANGES, 1, error, onward=True)
                done = nlpstack(*words_of(text, room / "runs" / "a"), *flag)
                calls.clear()
                with counting(f"read-only folder, {state}, {flag}, {errno.errorcode[error]}", results):
                    require(done.code == 2 and done.err.count("\n") == 1, f"exit code {done.code}: {done.err}")
                    require(str(room) in done.fault and os.strerror(error) in done.fault, done.err)
                    require(tree(room) == before, "something was changed")
                    results["refused"] += 1
    print(f"a folder that refuses every change: {dict(results)}", flush=True)
    return results


def small_disk(calls: Calls, folder: Path, *, n_sizes: int) -> Counter[str]:
    """Real file systems in memory that are too small for the run, and are then made larger."""
    room, results = folder / "mounted", Counter[str]()
    room.mkdir()
    text = write_text(folder)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MOUNTED_KB}k", "nlpstack", str(room)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        print("a real full disk: left out, no file system may be mounted here", flush=True)
        return results
    try:
        expected, _ = unbroken(calls, text, room, FULL)
        used = sum(path.stat().st_size for path in room.rglob("*") if path.is_file()) // 1024
        for number in range(n_sizes):
            for entry in room.iterdir():
                shutil.rmtree(entry)
            size = max(8, used * (number + 1) // (n_sizes + 1) // 4 * 4)
            resize(room, size)
            with counting(f"a disk of {size} KiB", results):
                stop = lambda: resize(room, MOUNTED_KB)  # noqa: E731
                results[refused_and_resumed(text, room / "runs" / "a", expected, stop, errno.ENOSPC)] += 1
    finally:
        subprocess.run(["umount", "--lazy", str(room)], check=True)  # the tokens of the last run may still be mapped
    print(f"real disks of {n_sizes} sizes below the {used} KiB of the run: {dict(results)}", flush=True)
    return results


def resize(room: Path, kilobytes: int) -> None:
    """Make a mounted file system larger or smaller."""
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(room)], check=True)


WHOLE = ("pretrain", "read-only", "small disk")


def torture(folder: Path, only: list[str], *, every: int, seed: int) -> int:
    """Everything, or what is named; the number of findings."""
    calls, found = Calls(), 0
    for subject in subjects(folder / "wanted"):
        if not only or subject.name in only:
            start = random.Random(f"{seed} {subject.name}").randrange(every) + 1
            found += each_call(calls, subject, folder / "subject", every=every, start=start)[1]
    if not only or "pretrain" in only:
        found += full_disk(calls, folder, every=every, seed=seed)["findings"]
    if not only or "read-only" in only:
        found += refusing_folder(calls, folder)["findings"]
    if not only or "small disk" in only:
        found += small_disk(calls, folder, n_sizes=max(2, 24 // every))["findings"]
    return found


def main() -> None:
    """Read the options, start again with the library, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help=f"a save's name, or {', '.join(WHOLE)}; repeatable")
    parser.add_argument("--every", type=int, default=1, help="of the calls only each so-many-th, from a random one on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preloaded", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if reason := failing.missing():
        print(f"left out: {reason}")
        return
    with tempfile.TemporaryDirectory() as folder:
        if not options.preloaded:
            words = [*sys.argv[1:], "--preloaded"]
            sys.exit(failing.run_preloaded("tests.faults.failing_calls", words, failing.build(Path(folder))))
        print(f"seed {options.seed}", flush=True)
        found = torture(Path(folder).resolve(), options.only, every=options.every, seed=options.seed)
    print(f"{found} findings")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
