"""Token shards of hand-made documents, and an encoder that shows what it was given."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from nlpstack.data.readers import Piece
from nlpstack.data.shards import ShardSpec, TokenShards, load_or_tokenize

FIRST = 3  # ids below are special: 1 begins a document, 2 ends it


def encode(texts: Sequence[str]) -> list[np.ndarray]:
    """One token a character."""
    return [np.array([FIRST + ord(char) % 1000 for char in text], dtype=np.int32) for text in texts]


def cut(text: str) -> list[str]:
    """A sentence ends behind each full stop."""
    return re.findall(r"[^.]*\.|[^.]+$", text)


MakeShards = Callable[..., TokenShards]


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """A function of documents (texts) that gives their shards; with `sentences`, these end behind full stops."""
    made = 0

    def make(
        documents: Sequence[str], *, bos_id: int | None = 1, eos_id: int | None = 2, sentences: bool = False
    ) -> TokenShards:
        nonlocal made
        made += 1
        name = "full stops" if sentences else ""
        spec = ShardSpec(
            split_key="k", tokenizer_hash="t", vocab_size=2000, bos_id=bos_id, eos_id=eos_id, sentences=name
        )
        pieces, cache = [Piece(text, last=True) for text in documents], tmp_path / f"cache-{made}"
        return load_or_tokenize(lambda: pieces, encode, spec, cache, lambda _: None, segment=cut if sentences else None)

    return make


class LetterTokenizer:
    """What a task asks of a tokenizer whose tokens are the characters as `encode` numbers them."""

    vocab_size, hash = 2000, "letters"
    bos_id = eos_id = unk_id = None
    cls_id, sep_id, pad_id = 1, 2, 0

    def token_bytes(self, token: int) -> bytes:
        """The character's bytes."""
        return chr(token - FIRST).encode() if token >= FIRST else b""
