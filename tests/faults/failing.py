"""failing.c compiled, and steered: calls below one folder that are counted, and that fail when they are told to."""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
ROOT = Path(__file__).resolve().parents[2]
# The kinds of calls, in the order of failing.c: bytes, forcing them to disk, moving, making, deleting, and listing.
WRITE, SYNC, RENAME, MAKE, REMOVE, LIST = range(6)
KINDS = {"write": WRITE, "sync": SYNC, "rename": RENAME, "make": MAKE, "remove": REMOVE, "list": LIST}
FULL = (WRITE, SYNC, MAKE)  # what a full disk refuses; moving and deleting it allows
CHANGES = (WRITE, SYNC, RENAME, MAKE, REMOVE)  # what a read-only folder refuses


def missing() -> str:
    """Why the calls of this machine cannot be made to fail; empty where they can."""
    if sys.platform != "linux":
        return "calls are made to fail by preloading a library, on Linux only"
    return "" if _compiler() else "no C compiler, which the library of failing calls needs"


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def build(folder: Path) -> Path:
    """The library, compiled into a folder."""
    library = folder / "failing.so"
    words = [str(_compiler()), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, SOURCE, "-ldl"]
    subprocess.run(words, check=True)
    return library


def environment(library: Path, **values: object) -> dict[str, str]:
    """This process's environment for one that has the library, which takes its orders from `FAULTS_...`."""
    told = {
        f"FAULTS_{name.upper()}": str(int(value) if isinstance(value, bool) else value)
        for name, value in values.items()
    }
    return {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), **told}


def mask(kinds: tuple[int, ...]) -> int:
    """Kinds of calls as the library takes them."""
    return sum(1 << kind for kind in kinds)


def run_preloaded(module: str, words: list[str], library: Path) -> int:
    """Run a module with the library in a process of its own; its exit code."""
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, env=environment(library), cwd=ROOT).returncode


class Calls:
    """The library that this process was started with."""

    def __init__(self) -> None:
        os.environ.pop("LD_PRELOAD", None)  # the processes that this one starts run without it
        self._library = ctypes.CDLL(None)
        self._library.faults_count.restype = self._library.faults_refused.restype = ctypes.c_long
        self._library.faults_last.restype = ctypes.c_char_p

    def set(self, folder: Path, kinds: tuple[int, ...], n: int = 0, error: int = 0, *, onward: bool = False) -> None:
        """Count calls below a folder anew; the n-th of these kinds fails with `error`, and with `onward` all later."""
        path = os.fsencode(folder.resolve())
        self._library.faults_set(path, mask(kinds), ctypes.c_long(n), error, int(onward))

    def clear(self) -> None:
        """Nothing is watched, and nothing fails, any more."""
        self._library.faults_set(b"", 0, ctypes.c_long(0), 0, 0)

    @property
    def counts(self) -> Mapping[str, int]:
        """Calls below the folder, by kind."""
        return {name: self._library.faults_count(kind) for name, kind in KINDS.items()}

    @property
    def refused(self) -> int:
        """How many calls failed."""
        return int(self._library.faults_refused())

    @property
    def last(self) -> str:
        """The path of the last call below the folder."""
        return os.fsdecode(self._library.faults_last())
