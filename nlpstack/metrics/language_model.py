"""Perplexity and its kin, from summed losses and counts."""

import math
from typing import Any

import numpy as np

from nlpstack.errors import DataError
from nlpstack.metrics.intervals import Units, Values

MIN_DOCUMENTS = 10  # with fewer, the resampling unit is the window


def mean_loss(nll: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Loss a token, in nats; `nll` is summed, in nats."""
    return np.asarray(nll / count)


def perplexity(nll: np.ndarray, count: np.ndarray) -> np.ndarray:
    """exp of the mean loss a token, or a word; `nll` is summed, in nats."""
    return np.asarray(np.exp(mean_loss(nll, count)))


def bits_per_byte(nll: np.ndarray, n_bytes: np.ndarray) -> np.ndarray:
    """Cost of the text in bits per UTF-8 byte, comparable across tokenizers; `nll` is summed, in nats."""
    return mean_loss(nll, n_bytes) / math.log(2)


def language_formula(rows: np.ndarray, counts: np.ndarray) -> Values:
    """The scores of rows of (summed nll in nats, tokens, bytes, words)."""
    nll, tokens, n_bytes, words = (counts @ rows).T
    return {
        "loss": (mean_loss(nll, tokens), tokens),
        "perplexity": (perplexity(nll, tokens), tokens),
        "word_perplexity": (perplexity(nll, words), words),
        "bits_per_byte": (bits_per_byte(nll, n_bytes), n_bytes),
    }


class LanguageModelScores:
    """Loss, perplexity a token and a word, and bits per byte of a corpus, each token scored once."""

    def __init__(self) -> None:
        self.told: dict[int, tuple[Any, Any]] = {}  # predictions of examples: none
        self._windows: list[tuple[int, float, int, int]] = []  # (document, summed nll in nats, tokens, bytes)
        self._documents: dict[int, tuple[int, int]] = {}  # document -> words in its text, tokens to score in it

    def update(self, document: int, nll: float, n_tokens: int, n_bytes: int) -> None:
        """Count one window: its summed loss in nats, and the tokens and text bytes that were scored."""
        self._windows.append((document, nll, n_tokens, n_bytes))

    def add_document(self, document: int, n_words: int, n_targets: int) -> None:
        """Count a document's words, runs of characters between white space, and the tokens that it has to score.

        Of a document that is scored in part (`eval.max_tokens`) the same part of its words counts.
        """
        self._documents[document] = n_words, n_targets

    def parts(self) -> list[Units]:
        """What was counted: documents or, where these are few, windows."""
        if not self._windows:
            raise DataError("nothing to score: no text of the split has a token after the first; give more text")
        windows = np.array(self._windows, dtype=np.float64).reshape(-1, 4)  # document, nll, tokens, bytes
        windows = windows[np.argsort(windows[:, 0], kind="stable")]
        numbers, starts = np.unique(windows[:, 0], return_index=True)
        sums = np.add.reduceat(windows[:, 1:], starts, axis=0)  # (documents, 3)
        whole = np.array([self._documents[int(number)] for number in numbers], dtype=np.float64)  # (documents, 2)
        words = whole[:, 0] * (sums[:, 1] / whole[:, 1])
        rows, unit = np.column_stack((sums, words)), "document"
        if len(numbers) < MIN_DOCUMENTS:
            # Inside a document words are not counted by window; they are shared out by bytes.
            per_byte = np.repeat(words / np.maximum(sums[:, 2], 1), np.diff([*starts, len(windows)]))
            rows, unit = np.column_stack((windows[:, 1:], windows[:, 3] * per_byte)), "window"
        return [Units(language_formula, unit, rows)]
