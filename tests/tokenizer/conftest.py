"""Tiny tokenizers of each kind, trained once."""

import pytest

from nlpstack.tokenizer import SentencePieceTokenizer, TokenizerConfig, train_tokenizer

WORDS = (
    "the sea and a ship went over under its hills while she sang of winters, summers; "
    "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e don't"
)


def training_text() -> str:
    """Some 60 kB in which words of a small vocabulary follow each other without a pattern that repeats soon."""
    words = WORDS.split(" ")
    stems = [first + second for first in words for second in words[:9]]
    lines = [" ".join(stems[(7 * line + 31 * at * at) % len(stems)] for at in range(12)) for line in range(500)]
    return "\n".join(lines)


@pytest.fixture(scope="session")
def corpus() -> str:
    return training_text()


@pytest.fixture(scope="session", params=["unigram", "bpe", "char"])
def tokenizer(request: pytest.FixtureRequest, corpus: str) -> SentencePieceTokenizer:
    config = TokenizerConfig(kind=request.param, vocab_size=None if request.param == "char" else 500)
    return train_tokenizer([corpus], config)
