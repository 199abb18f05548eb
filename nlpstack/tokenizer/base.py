"""What every tokenizer offers, and the settings of those we train."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from nlpstack.errors import DataError

Kind = Literal["unigram", "bpe", "char"]

DEFAULT_VOCAB_SIZE = 8192


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

    @property
    def vocab_size(self) -> int:
        """Number of ids; they run from 0."""

    @property
    def pad_id(self) -> int | None:
        """Fills up a batch."""

    @property
    def unk_id(self) -> int | None:
        """Stands for what has no piece."""

    @property
    def bos_id(self) -> int | None:
        """Begins a text."""

    @property
    def eos_id(self) -> int | None:
        """Ends a text."""

    @property
    def cls_id(self) -> int | None:
        """Begins a BERT input; its hidden state stands for the whole."""

    @property
    def sep_id(self) -> int | None:
        """Ends each segment of a BERT input."""

    @property
    def mask_id(self) -> int | None:
        """Hides a token that is to be guessed."""

    @property
    def mask_token(self) -> str | None:
        """The spelling of the mask."""

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids above, and others that are no text: they decode to nothing, and only unk_id ever encodes any."""

    @property
    def hash(self) -> str:
        """SHA-256 of the bytes that define the tokenizer, as hexadecimal digits."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special ids."""

    def encode_batch(self, texts: Sequence[str], *, threads: int) -> list[np.ndarray]:
        """The ids of each text as an int32 array."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""

    def piece(self, token: int) -> str:
        """How the vocabulary spells an id, its word mark included."""

    def token_bytes(self, token: int) -> bytes:
        """What an id contributes to the UTF-8 of a text."""

    def word_ids(self, ids: np.ndarray) -> np.ndarray:
        """The number, from 0, of the word that each id (T,) belongs to; -1 at special ids; int64 (T,)."""

    def save(self, folder: Path, *, max_length: int | None = None, pairs: bool = False) -> None:
        """Write the tokenizer's files; of one of ours, with `pairs`, Hugging Face's libraries read a BERT's input."""


def utf8(text: str) -> bytes:
    """The text as UTF-8; raises DataError on a lone surrogate, which no UTF-8 can hold."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        code_point = ord(text[error.start])
        raise DataError(
            f"character {error.start:,} of the text is U+{code_point:04X}, a lone surrogate, which UTF-8 cannot hold; "
            "remove it or read the file as UTF-8"
        ) from error
