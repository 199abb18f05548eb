"""A corpus and its splits, surveyed once and streamed as often as needed; and a text cut into its sentences."""

import hashlib
import re
import sys
import unicodedata
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencex

from nlpstack.data.readers import OVERLAPS, DataConfig, Note, Piece, find_splits, mute, read_documents
from nlpstack.errors import DataError, some

SEGMENTER = f"sentencex-{version('sentencex')}"  # another version may cut elsewhere: part of what is cached by
WINDOW = 4096  # characters of a paragraph that are cut at a time: sentencex's time grows with their square
_BREAK = re.compile(r"(\n\s*\n)")  # a line end and at least one blank line
_SPACE = " \n\r\t"  # no piece of a tokenizer holds one of them behind its first character
_ODD_SPACE = re.compile(r"[^\S \n]")


class Survey(NamedTuple):
    """What one pass over a stream of documents found."""

    n_chars: int
    is_blank: bool  # nothing but white space
    sha256: str  # of the texts and of where documents end, however they are packed into files
    digests: np.ndarray  # uint64, one a document


def survey(pieces: Iterator[Piece]) -> Survey:
    """Count and hash a stream of documents."""
    whole, document = hashlib.sha256(), hashlib.blake2b(digest_size=8)
    n_chars, is_blank, digests = 0, True, array("Q")
    for text, last in pieces:
        data = text.encode("utf-8")
        n_chars += len(text)
        is_blank = is_blank and not text.strip()
        whole.update(data)
        document.update(data)
        if last:
            whole.update(b"\xff")  # a byte that UTF-8 never holds
            digests.append(int.from_bytes(document.digest(), "little"))
            document = hashlib.blake2b(digest_size=8)
    return Survey(n_chars, is_blank, whole.hexdigest(), np.frombuffer(digests, dtype=np.uint64))


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a corpus: files, or a stretch of them."""

    name: str
    files: tuple[Path, ...]
    documents: str
    unit: str = "document"  # what start and stop count: documents, or characters of a single document
    start: int = 0
    stop: int | None = None  # None: to the end
    survey: Survey  # of the files; the same for two splits cut from them

    @property
    def key(self) -> str:
        """A hash of the split's text."""
        return hashlib.sha256(f"{self.survey.sha256}|{self.unit}|{self.start}|{self.stop}".encode()).hexdigest()

    @property
    def digests(self) -> np.ndarray:
        """One hash a document of this split; none if it is a stretch of one document."""
        return self.survey.digests[self.start : self.stop] if self.unit == "document" else self.survey.digests[:0]

    def pieces(self, note: Note = mute) -> Iterator[Piece]:
        """The split's text, streamed."""
        stop = sys.maxsize if self.stop is None else self.stop
        at = 0  # documents, or characters, that are behind
        for text, last in read_documents(self.files, self.documents, note):
            if self.unit == "document":
                part, end = text if at >= self.start else "", at + last
            else:
                part, end = text[max(self.start - at, 0) : stop - at], at + len(text)
                last = last or end >= stop
            if part:
                yield Piece(part, last)
            at = end
            if at >= stop:
                return


def load_corpus(config: DataConfig, note: Note) -> dict[str, Split]:
    """The splits of a corpus: train, val (cut if it has none), and test if it has one; says what is double."""
    splits = {name.replace("all", "train"): split for name, split in whole_corpus(config, note).items()}
    if "val" not in splits:
        splits |= cut_val(splits["train"], config.val_share, note)
    for name, other, where in OVERLAPS:
        digests = splits[name].digests if name in splits else np.array([])
        if double := int(np.isin(digests, splits[other].digests).sum()):
            note(f"{double:,} of {len(digests):,} {name} documents also stand, word for word, in the {where} data")
    return splits


def whole_corpus(config: DataConfig, note: Note) -> dict[str, Split]:
    """The splits as they stand, nothing cut; files that are no split's are the split "all"."""
    splits = {}
    for name, files in find_splits(config.paths).items():
        if (found := survey(read_documents(files, config.documents, note))).is_blank:
            raise DataError(f"{some(files)}: holds no text, at most white space; give files with text in them")
        splits[name] = Split(name=name, files=tuple(files), documents=config.documents, survey=found)
    return splits


def cut_val(train: Split, share: float, note: Note) -> dict[str, Split]:
    """Train and val cut from one split: the last documents, or the end of the only one."""
    n_documents, n_chars = len(train.survey.digests), train.survey.n_chars
    unit, what, total = ("document", "documents", n_documents) if n_documents > 1 else ("char", "characters", n_chars)
    cut = min(max(int(total * (1 - share) + 1e-9), 1), total - 1)
    if total < 2:
        raise DataError(f"{train.files[0]}: too short to cut a validation part from")
    note(f"no validation split: the last {total - cut:,} of {total:,} {what} are held out for it")
    first, last = replace(train, name="train", unit=unit, stop=cut), replace(train, name="val", unit=unit, start=cut)
    return {"train": first, "val": last}


def split_sentences(text: str, language: str) -> list[str]:
    """The sentences of a text; joined, they are the text. Each but the first begins with the white space before it.

    `language` is an ISO 639 code; one that sentencex does not know is cut by English rules. A sentence begins where no
    piece of a tokenizer runs on: at white space, or after a wide character, as in Chinese and Japanese, where one may.
    """
    parts, start, last = [], 0, len(text.rstrip())
    for begin, end in _segments(text, language):
        segment = text[begin:end]
        for cut in (begin + len(segment.rstrip()), begin + len(segment.rstrip(_SPACE))):
            wide = unicodedata.east_asian_width(text[cut - 1]) in "WF"  # or full-width
            if start < cut < last and segment.strip() and (text[cut] in _SPACE or wide):
                parts.append(text[start:cut])
                start = cut
                break
    return [*parts, text[start:]] if text else []


def _segments(text: str, language: str) -> Iterator[tuple[int, int]]:
    """Begin and end of what sentencex takes for sentences, paragraph by paragraph."""
    plain = _ODD_SPACE.sub(" ", text)  # sentencex panics at "A<ideographic space>."; the places stay the same
    at = 0
    for number, block in enumerate(_BREAK.split(plain)):
        stop = at + len(block)
        while at < stop and number % 2 == 0:  # the odd ones are the breaks
            end = min(at + WINDOW, stop)
            found = sentencex.segment(language, plain[at:end])
            whole = found if end == stop else found[:-1]  # the last one may go on
            for segment in whole:
                yield at, at + len(segment)
                at += len(segment)
            if end == stop or not whole:
                at = end
        at = stop
