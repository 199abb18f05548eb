"""What every tokenizer offers, and the settings of those we train."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from nlpstack.errors import DataError

Kind = Literal["unigram", "bpe", "char"]

DEFAULT_VOCAB_SIZE = 8192
ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")  # of special tokens
SPACE = "\u2581"  # what SentencePiece writes for a space, and hence cannot tell from one
BYTE_PIECES = {f"<0x{byte:02X}>": byte for byte in range(256)}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TokenizerConfig:
    """How a tokenizer is trained."""

    kind: Kind = "unigram"  # bpe: byte-pair encoding; char: one piece a character
    vocab_size: int | None = Field(default=None, gt=0)  # None: 8192; for char, every character of the corpus
    character_coverage: float = Field(default=0.9999, ge=0.98, le=1.0)  # share of the text; rarer ones become bytes
    max_train_bytes: int = Field(default=100_000_000, ge=1024)  # beyond it, an evenly spread sample is trained on

    def __post_init__(self) -> None:
        """Fill in the size that depends on the kind, so that a saved config states it."""
        if self.vocab_size is None and self.kind != "char":
            object.__setattr__(self, "vocab_size", DEFAULT_VOCAB_SIZE)


class Tokenizer(Protocol):
    """Turns text into ids and back; an id that the tokenizer does not have is None."""

    vocab_size: int  # ids run from 0
    pad_id: int | None  # fills up a batch
    unk_id: int | None  # stands for what has no piece
    bos_id: int | None  # begins a text
    eos_id: int | None  # ends a text
    cls_id: int | None  # begins a BERT input; its hidden state stands for the whole
    sep_id: int | None  # ends each segment of a BERT input
    mask_id: int | None  # hides a token that is to be guessed
    mask_token: str | None  # the spelling of the mask
    special_ids: frozenset[int]  # these, and others that are no text: they decode to nothing; text gives unk_id at most
    hash: str  # SHA-256 of the bytes that define the tokenizer, as hexadecimal digits

    chat_template: str | None = None  # how a conversation is written down, in Jinja

    _pieces: list[str]  # the spelling of each id
    _space: str = SPACE  # begins a piece that begins a word, unless
    _inner: str = ""  # this begins one that does not
    _newline: str = "\n"  # the spelling of a line end
    _byte_of: dict[str, int] = BYTE_PIECES  # the spellings of single bytes

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special ids but unk_id; raises DataError on a lone surrogate."""

    def encode_batch(self, texts: Sequence[str], *, threads: int) -> list[np.ndarray]:
        """The ids of each text as an int32 array."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special ids give nothing, bytes that are not UTF-8 become U+FFFD."""
        ids = list(ids)
        check_ids(ids, self.vocab_size)
        return b"".join([self._bytes[token] for token in ids]).decode(errors="replace")

    def save(self, folder: Path, *, max_length: int | None = None, pairs: bool = False) -> None:
        """Write the tokenizer's files; those of ours tell Hugging Face's libraries more.

        `max_length`: the model's longest input in tokens; with `pairs` they put [CLS] and [SEP] around texts and pairs.
        """

    def piece(self, token: int) -> str:
        """How the vocabulary spells an id, its word mark included."""
        return self._pieces[token]

    def token_bytes(self, token: int) -> bytes:
        """What an id contributes to the UTF-8 of a text: nothing for a special id, no space for BERT's pieces."""
        return self._bytes[token]

    def word_ids(self, ids: np.ndarray) -> np.ndarray:
        """The number, from 0, of the word that each id (T,) belongs to; -1 at special ids; int64 (T,)."""
        check_ids(ids, self.vocab_size)
        begins, closes, special = (marks[ids] for marks in self._word_marks)
        begins[:1] = True
        begins[1:] |= closes[:-1]
        return np.where(special, -1, np.cumsum(begins & ~special, dtype=np.int64) - 1)

    @cached_property
    def _bytes(self) -> list[bytes]:
        return [b"" if token in self.special_ids else self._spelled(piece) for token, piece in enumerate(self._pieces)]

    def _spelled(self, piece: str) -> bytes:
        units = [piece] if piece in BYTE_PIECES else piece
        if all(unit in self._byte_of for unit in units):
            return bytes(self._byte_of[unit] for unit in units)
        return (piece.removeprefix(self._inner) if self._inner else piece.replace(SPACE, " ")).encode()

    @cached_property
    def _word_marks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Does a word begin with the id; does one with whatever follows it; is the id in no word: bool (V,)."""
        pieces, starts = self._pieces, (self._space, self._newline)
        begins = [not piece.startswith(self._inner) if self._inner else piece.startswith(starts) for piece in pieces]
        special = np.isin(np.arange(len(pieces)), list(self.special_ids))
        return np.array(begins, bool), special | [piece.endswith(self._newline) for piece in pieces], special


def utf8(text: str) -> bytes:
    """The text as UTF-8; raises DataError on a lone surrogate, which no UTF-8 can hold."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        fault = f"is U+{ord(text[error.start]):04X}, a lone surrogate, which UTF-8 cannot hold"
        cure = "remove it or read the file as UTF-8"
        raise DataError(f"character {error.start:,} of the text {fault}; {cure}") from error


def check_ids(ids: np.ndarray | Sequence[int], vocab_size: int) -> None:
    """Raise DataError naming the first id that is not in the vocabulary."""
    array = np.asarray(ids)
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        wrong = array[(array < 0) | (array >= vocab_size)][0]
        raise DataError(f"id {wrong} is not in the vocabulary, which ends at {vocab_size - 1}")
