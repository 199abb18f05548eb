"""Which ids of a row make up one word, told by the marks in the vocabulary's pieces."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nlpstack.errors import DataError


class WordMarks(NamedTuple):
    """What each id of a vocabulary says of words: three arrays (V,) of bool."""

    begins: np.ndarray  # a word begins with the piece
    closes: np.ndarray  # whatever follows begins a word
    special: np.ndarray  # the id belongs to no word


def word_marks(pieces: Sequence[str], special_ids: Iterable[int], space: str, newline: str, inner: str) -> WordMarks:
    """The marks of a vocabulary whose pieces begin words with `space`, or else (`inner`) go on in them with that."""
    begins = [not piece.startswith(inner) if inner else piece.startswith((space, newline)) for piece in pieces]
    special = np.isin(np.arange(len(pieces)), list(special_ids))
    return WordMarks(np.array(begins, bool), special | [piece.endswith(newline) for piece in pieces], special)


def number_words(ids: np.ndarray, marks: WordMarks) -> np.ndarray:
    """The number, from 0, of the word that each id (T,) belongs to; -1 at special ids; int64 (T,)."""
    check_ids(ids, len(marks.special))
    special, begins = marks.special[ids], marks.begins[ids]
    begins[:1] = True
    begins[1:] |= marks.closes[ids[:-1]]
    return np.where(special, -1, np.cumsum(begins & ~special, dtype=np.int64) - 1)


def check_ids(ids: np.ndarray | Sequence[int], vocab_size: int) -> None:
    """Raise DataError naming the first id that is not in the vocabulary."""
    array = np.asarray(ids)
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        wrong = array[(array < 0) | (array >= vocab_size)][0]
        raise DataError(f"id {wrong} is not in the vocabulary, which ends at {vocab_size - 1}")
