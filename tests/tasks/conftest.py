"""Tokenizers of every kind, ours and published."""

from pathlib import Path

import pytest

from nlpstack.samples import sample
from nlpstack.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer

KINDS = ("unigram", "bpe", "char", "wordpiece")


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """A tokenizer of each of KINDS."""
    text = sample("shakespeare").read_text("utf-8")[:60_000]
    found: dict[str, Tokenizer] = {
        kind: train_tokenizer([text], TokenizerConfig(kind=kind, vocab_size=None if kind == "char" else 600))
        for kind in KINDS[:3]
    }
    folder: Path = tmp_path_factory.mktemp("wordpiece")
    letters = "abcdefghijklmnopqrstuvwxyzéß0123456789.,'-"
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{sign}" for sign in letters),
        "the",
        "##ing",
    ]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    found["wordpiece"] = load_tokenizer(folder)
    return found
