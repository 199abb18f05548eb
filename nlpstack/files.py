"""Files and folders that are written whole or not at all, and checked when they are read back."""

import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from nlpstack.errors import ConfigError, NlpstackError

MANIFEST = "manifest.json"
ASIDE_SUFFIX = ".aside"  # where the old folder stands for a moment when two folders cannot be exchanged in one step
_WORDS = ("tokenizer", "vocab.", "merges.", "special_tokens", "chat_template")  # how a tokenizer's files begin
_MOST_DEPTH = 100  # of JSON; no file of ours or of others goes beyond a few
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Force a file, or a folder's list of entries, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file, text as UTF-8, so that a reader, or a crash, sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with naming(path):
        try:
            temporary.write_bytes(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
            fsync_path(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """While `path` is written: what the system refuses without saying where, such as room, is said of it."""
    try:
        yield
    except OSError as error:
        if error.errno and os.sep not in str(error.filename or ""):  # no name, or one inside a folder
            error.filename = str(path)
        raise


def check_output(path: Path, option: str = "") -> None:
    """Refuse an output file that cannot be written: known now, not after the work; `option` names it."""
    if path.is_dir():
        raise ConfigError(f"{option}{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}{path}: there is no folder {path.parent}; make it first")


def decode_utf8(
    data: bytes, source: object, kind: type[NlpstackError], cure: str = "", *, offset: int = 0, line: int = 0
) -> str:
    """Bytes as text; raises `kind` where they are none, and tells the byte, counted from `offset`, and the cure."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        fault = f"not UTF-8 at byte {offset + error.start} (0x{data[error.start]:02x})"
        raise kind(f"{source}{f':{line}' * (line > 0)}: {fault}{cure}") from error


def read_json_object(path: Path, kind: type[NlpstackError], data: bytes | None = None) -> dict[str, Any]:
    """The JSON object in a file, or in its bytes if they are at hand; raises `kind`, naming it, if there is none."""
    try:
        if data is None and not path.is_file():  # a device might never end
            raise OSError("there is no such file")
        value = json.loads((path.read_bytes() if data is None else data).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise kind(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise kind(f"{path}: expected a JSON object, found {type(value).__name__}")
    level: list[Any] = [value]
    for _ in range(_MOST_DEPTH):
        parts = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = list(chain.from_iterable(parts))
    if level:  # what shows or writes a value would stumble over it
        raise kind(f"{path}: is nested more than {_MOST_DEPTH} levels deep, as no file of this kind is")
    return value


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and of those in it, sorted; unlike pathlib's search, OSError where one cannot be listed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from files_below(path)
        elif path.is_file():
            yield path


@contextmanager
def new_folder(target: Path, *, free_text: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` once the block ends without an error.

    All in it is forced to disk before, the manifest (size and SHA-256 of each file not in `free_text`) last.
    """
    target = target.resolve()  # of a link it is what it points to that is replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with naming(target):
            yield temporary
            entries = {}
            for path in files_below(temporary):
                path.chmod(temporary.stat().st_mode & 0o666)  # safetensors makes files that no other user may read
                fsync_path(path)
                if (name := path.relative_to(temporary).as_posix()) not in free_text:
                    entries[name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
            write_file(temporary / MANIFEST, json.dumps({"files": entries}, indent=1) + "\n")
            publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Put `folder` where `target` is, in one step where the system can; what stood there is removed."""
    aside = target.with_name(target.name + ASIDE_SUFFIX)
    try:
        os.rename(folder, target)
    except OSError:  # mostly since something stands there, perhaps only since a moment ago
        if not target.exists():
            raise
        if not _exchange(folder, target):
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(target, aside)
            os.rename(folder, target)
    for old in (folder, aside):  # what stood there, or what a writer killed between two renames left
        shutil.rmtree(old, ignore_errors=True)
    fsync_path(target.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths with Linux's renameat2; False where system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    places = _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second)
    return renameat2 is not None and bool(renameat2(*places, _RENAME_EXCHANGE) == 0)


def standing(folder: Path) -> Path:
    """The folder itself or, while it is being exchanged, the old one beside it."""
    aside = Path(f"{folder}{ASIDE_SUFFIX}")
    return aside if not folder.exists() and aside.exists() else folder


def verify_manifest(folder: Path, kind: type[NlpstackError], cure: str) -> bool:
    """Check all files of the manifest, False if there is none; raises `kind` naming the first fault, and the cure."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return False
    entries = read_json_object(path, kind).get("files")
    if not isinstance(entries, dict):
        raise kind(f"{path}: holds no list of files; {cure}")
    for name, entry in entries.items():
        file = folder / name
        is_there = os.path.isfile(file)
        if {"..", "/"} & {*Path(name).parts} or (is_there and not file.resolve().is_relative_to(folder.resolve())):
            raise kind(f"{path}: names '{name}', which is outside the folder; {cure}")
        if not is_there:
            raise kind(f"{file}: missing, though {MANIFEST} lists it; {cure}")
        told = entry if isinstance(entry, dict) else {}
        if file.stat().st_size != told.get("size"):
            raise kind(f"{file}: {file.stat().st_size} bytes, {MANIFEST} says {told.get('size')}; {cure}")
        if sha256_file(file) != told.get("sha256"):
            raise kind(f"{file}: altered since it was written (its SHA-256 is not the one in {MANIFEST}); {cure}")
    for file in folder.iterdir() if any(name.startswith(_WORDS) for name in entries) else ():
        if file.name.startswith(_WORDS) and file.name not in entries:
            raise kind(f"{file}: is not in {MANIFEST}, so it was put there later; take it away, or {cure}")
    return True


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files and folders that a killed writer left in `folder`; call it only as its one writer."""
    for path in folder.glob(".*.tmp-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
