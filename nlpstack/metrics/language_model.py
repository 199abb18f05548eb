"""Perplexity and its kin, from summed losses and counts."""

import math
from collections.abc import Callable

import numpy as np

from nlpstack.errors import DataError
from nlpstack.metrics import Score
from nlpstack.metrics.intervals import Formula, scores_of_sums

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


class LanguageModelScores:
    """Loss, perplexity a token and a word, and bits per byte of a corpus, each token scored once."""

    def __init__(self) -> None:
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

    def compute(self, signature: str, *, n_resamples: int, seed: int) -> dict[str, Score]:
        """Every score with its 95 % interval; the unit that is resampled is in the signature."""
        if not self._windows:
            raise DataError("nothing to score: no text of the split has a token after the first; give more text")
        units, unit = self._units()

        def of(column: int, formula: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> tuple[Formula, int]:
            return lambda sums: formula(sums[:, 0], sums[:, column]), column

        formulas = {
            "loss": of(1, mean_loss),
            "perplexity": of(1, perplexity),
            "word_perplexity": of(3, perplexity),
            "bits_per_byte": of(2, bits_per_byte),
        }
        return scores_of_sums(units, formulas, f"{signature}|unit:{unit}", n_resamples, seed)

    def _units(self) -> tuple[np.ndarray, str]:
        """Rows of (nll, tokens, bytes, words) to resample, and what a row is."""
        windows = np.array(self._windows, dtype=np.float64).reshape(-1, 4)  # document, nll, tokens, bytes
        windows = windows[np.argsort(windows[:, 0], kind="stable")]
        numbers, starts = np.unique(windows[:, 0], return_index=True)
        sums = np.add.reduceat(windows[:, 1:], starts, axis=0)  # (documents, 3)
        whole = np.array([self._documents[int(number)] for number in numbers], dtype=np.float64)  # (documents, 2)
        words = whole[:, 0] * (sums[:, 1] / whole[:, 1])
        if len(numbers) >= MIN_DOCUMENTS:
            return np.column_stack((sums, words)), "document"
        # Inside a document words are not counted by window; they are shared out by bytes.
        per_byte = words / np.maximum(sums[:, 2], 1)
        rows = np.repeat(per_byte, np.diff([*starts, len(windows)]))
        return np.column_stack((windows[:, 1:], windows[:, 3] * rows)), "window"
