"""Corpus files to documents: plain text and JSON lines, packed or not, folders, globs and bundled samples."""

import glob
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from nlpstack.errors import DataError
from nlpstack.files import decode_utf8, files_below
from nlpstack.samples import sample

PIECE_BYTES = 1 << 20  # a document is handed on in pieces of at most about this size, so that memory stays bounded
LINE_BYTES = 1 << 27  # of the longest line that is read whole
Note = Callable[[str], None]  # takes a line that says what was done
SplitFiles = dict[str, list[Path]]  # by the name of the split
SUFFIXES = (".txt", ".jsonl")
SUFFIXES_OF: Mapping[str, tuple[str, ...]] = {  # of labelled files, by their task
    "classification": (".tsv", ".csv", ".jsonl"),
    "ner": (".conll", ".bio", ".iob", ".iob2", ".txt", ".tsv", ".jsonl"),
    "generation": (".jsonl",),
}
PACKED = (".gz", ".zst")
SPLIT_NAMES = {"train": "train", "val": "val", "dev": "val", "valid": "val", "validation": "val", "test": "test"}
# Splits that should have nothing in common: what is scored, what it may also stand in, and what messages call that.
OVERLAPS = (("val", "train", "training"), ("test", "train", "training"), ("test", "val", "validation"))


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DataConfig:
    """Which text, and what a document is."""

    paths: list[str] = ()  # type: ignore[assignment]  # files, folders, globs or sample:NAME
    documents: Literal["files", "paragraphs"] = "files"  # of .txt: a file is one document, or each paragraph is
    language: str = "en"  # by whose rules sentences end, for a BERT's next-sentence task; an ISO 639 code
    val_share: float = 0.1  # cut from the end where the data has no validation split
    cache: str = ""  # folder for tokenized data; empty: `.cache` beside the run folder

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise ValueError(f"val_share={self.val_share} must be above 0 and below 1")


def mute(line: str) -> None:
    """The Note that says nothing; what library calls use unless they are given another."""


class Piece(NamedTuple):
    """A stretch of one document's text."""

    text: str
    last: bool  # the document ends with this piece


def find_splits(paths: Sequence[str], kind: str = "corpus") -> SplitFiles:
    """Files by split: {"train", and "val", "test" where there are any}, or {"all": ...} if no file is a split's.

    A folder with a `train.*` file is a data folder; any other stands for all files below it of the `kind`: a task's.
    """
    if not paths:
        raise DataError("no data given; name it with --data FILE|DIR|GLOB|sample:NAME")
    splits: SplitFiles = {}
    for text in paths:
        for split, files in _expand(text, kind).items():
            splits.setdefault(split, []).extend(files)
    if "all" in splits and "train" in splits:
        splits["train"].extend(splits.pop("all"))
    return splits


def _expand(text: str, kind: str) -> SplitFiles:
    suffixes = SUFFIXES_OF.get(kind, SUFFIXES)
    accepted = f"accepted: {', '.join(suffixes)}, each also with {' or '.join(PACKED)}"
    path = sample(text.removeprefix("sample:")) if text.startswith("sample:") else Path(text)
    if path.is_dir():
        if not (files := [file for file in files_below(path) if corpus_suffix(file, suffixes)]):
            raise DataError(f"{path}: no {kind} files in this folder; {accepted}")
        named: SplitFiles = {}
        for file in files:
            if (split := SPLIT_NAMES.get(file.name.partition(".")[0].lower())) and file.parent == path:
                named.setdefault(split, []).append(file)
        return named if "train" in named else {"all": files}
    files = [path] if path.is_file() else list(filter(Path.is_file, map(Path, sorted(glob.glob(text, recursive=True)))))
    if not files:
        raise DataError(f"{text}: no such file or folder, and no file matches it")
    if strange := [file for file in files if not corpus_suffix(file, suffixes)]:
        raise DataError(f"{strange[0]}: not a kind of {kind} file nlpstack reads; {accepted}")
    return {"all": files}


def corpus_suffix(path: Path, suffixes: Sequence[str] = SUFFIXES) -> str | None:
    """Which of `suffixes` the file's name ends in, whether packed or not; None for anything else."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((suffix for suffix in suffixes if name.endswith(suffix)), None)


@contextmanager
def open_packed(path: Path) -> Iterator[IO[bytes]]:
    """The file's unpacked bytes, as a stream; a file that cannot be opened, or is damaged, is a DataError."""
    suffix = path.suffix.lower()
    unpack: Any = gzip.open if suffix == ".gz" else open
    damage: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)  # what reading a broken packed file raises
    if suffix == ".zst":
        try:
            if sys.version_info >= (3, 14):
                from compression import zstd
            else:
                from backports import zstd
        except ImportError as error:
            raise DataError(f"{path}: .zst needs the package backports.zstd: pip install 'nlpstack[zstd]'") from error
        unpack, damage = zstd.open, (*damage, zstd.ZstdError)
    try:
        with unpack(path, "rb") as file:
            yield io.BufferedReader(file)  # whose readline takes half the time of gzip's own
    except damage as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_documents(files: Sequence[Path], documents: str, note: Note) -> Iterator[Piece]:
    """The documents of corpus files, in order, as pieces of at most about 1 MiB, cut at line ends if there are any."""
    note_once = cache(note)  # it is told once of each kind of thing that was done to the text
    for path in files:
        if corpus_suffix(path) == ".jsonl":
            yield from _read_jsonl(path, note_once)
        elif documents == "paragraphs":
            yield from _paragraphs(text_lines(path, note_once, with_ends=True))
        else:
            yield from _mark_last(_text_blocks(path, note_once))


def _mark_last(texts: Iterator[str]) -> Iterator[Piece]:
    for text, after in pairwise(chain(filter(None, texts), [""])):
        yield Piece(text, last=not after)


def _text_blocks(path: Path, note: Note) -> Iterator[str]:
    """Decoded text in pieces that end at a newline, or, in lines beyond PIECE_BYTES, before a space."""
    offset, rest = 0, b""
    with open_packed(path) as file:
        while block := file.read(PIECE_BYTES):
            buffer = rest + block
            cut = buffer.rfind(b"\n") + 1
            if cut == 0 and len(buffer) >= PIECE_BYTES:
                note(f"{path}: has lines over {PIECE_BYTES} bytes; they are tokenized in parts")
                # Before a space, else not inside a character: before the last one's first byte, which may be among
                # three, or after a whole one of four.
                starts = (at for at in range(len(buffer) - 1, len(buffer) - 4, -1) if buffer[at] & 0xC0 != 0x80)
                cut = max(buffer.rfind(b" "), 0) or next(starts, len(buffer))
            if cut:
                yield _decode(buffer[:cut], offset, path, note)
                offset += cut
            rest = buffer[cut:]
    if rest:
        yield _decode(rest, offset, path, note)


def _decode(data: bytes, offset: int, path: Path, note: Note, line: int = 0) -> str:
    """The text of a file, or of a line of it, from byte `offset` of the file on."""
    text = decode_utf8(data, path, DataError, "; convert the file to UTF-8", offset=offset, line=line)
    if offset == 0 and text.startswith("\ufeff"):
        note(f"{path}: begins with a byte-order mark, which is left out")
        return text[1:]
    return text


def _paragraphs(lines: Iterator[str]) -> Iterator[Piece]:
    """Each run of lines between lines that are empty or white space is a document, without its last line's end."""
    for is_blank, part in groupby(lines, key=lambda line: not line.strip()):
        held = ""  # of the paragraph, not handed on yet
        for line in () if is_blank else part:
            if len(held) >= PIECE_BYTES:
                yield Piece(held, last=False)
                held = ""
            held += line
        if held:
            yield Piece(held.rstrip("\r\n"), last=True)


def _read_jsonl(path: Path, note: Note) -> Iterator[Piece]:
    for number, text in json_rows(path, note, json_text):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{path}:{number}: 'text' holds a lone surrogate at character {error.start}") from error
        if text:
            yield from _mark_last(_cut_text(text))
        else:
            note(f"{path}: has empty texts, which are left out (the first in line {number})")


def json_text(where: str, line: str) -> str:
    """The `text` of a line of JSON; DataError, naming the place, if it has none."""
    wanted = "an object with a string 'text'"
    text = _json_object(where, line, wanted).get("text")
    if not isinstance(text, str):
        raise DataError(f"{where}: expected {wanted}")
    return text


def _json_object(where: str, line: str, wanted: str = "a JSON object") -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected {wanted}")
    return row


def json_rows(path: Path, note: Note, read: Callable[[str, str], Any] = _json_object) -> Iterator[tuple[int, Any]]:
    """What `read` makes of the lines of a file, by default their JSON objects, and their numbers; not of blank ones."""
    for number, line in enumerate(text_lines(path, note), 1):
        if line.strip():
            yield number, read(f"{path}:{number}", line)


def _cut_text(text: str) -> Iterator[str]:
    """A long text in pieces that end at a newline, or else before a space, where there is one."""
    start = 0
    while len(text) - start > PIECE_BYTES:
        end = start + PIECE_BYTES
        cut = text.rfind("\n", start, end) + 1 or max(text.rfind(" ", start + 1, end), 0) or end
        yield text[start:cut]
        start = cut
    yield text[start:]


def text_lines(path: Path, note: Note, *, with_ends: bool = False) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends (LF or CRLF); a byte-order mark is left out, and said."""
    offset = 0
    with open_packed(path) as file:
        for number, data in enumerate(iter(partial(file.readline, LINE_BYTES + 1), b""), 1):
            if len(data) > LINE_BYTES:  # a small packed file may hold one that no memory does
                raise DataError(f"{path}:{number}: a line of more than {LINE_BYTES:,} bytes; cut it")
            line = _decode(data, offset, path, note, number)
            yield line if with_ends else line.removesuffix("\n").removesuffix("\r")
            offset += len(data)
