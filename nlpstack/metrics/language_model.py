"""Perplexity and its kin, and how well hidden tokens and next sentences are guessed: of summed losses and counts."""

import math
from operator import itemgetter
from typing import Any

import numpy as np

from nlpstack.errors import DataError
from nlpstack.metrics import Units, Values

MIN_DOCUMENTS = 10  # with fewer, the resampling unit is the window


def language_formula(rows: np.ndarray, counts: np.ndarray) -> Values:
    """The scores of rows of (summed nll in nats, tokens, UTF-8 bytes, words)."""
    nll, tokens, n_bytes, words = (counts @ rows).T
    return {
        "loss": (nll / tokens, tokens),
        "perplexity": (np.exp(nll / tokens), tokens),
        "word_perplexity": (np.exp(nll / words), words),
        "bits_per_byte": (nll / n_bytes / math.log(2), n_bytes),
    }


class LanguageModelScores:
    """Loss, perplexity a token and a word, and bits per byte of a corpus, each token scored once."""

    def __init__(self) -> None:
        self.told: dict[int, tuple[Any, Any]] = {}  # predictions of examples: none
        self._windows: list[tuple[float, ...]] = []  # as `update` takes them, the numbers of `whole` last

    def update(self, document: int, nll: float, n_tokens: int, n_bytes: int, whole: tuple[int, int]) -> None:
        """Count one window: its summed loss in nats, and the tokens and text bytes that were scored.

        `whole` are its document's words, runs of characters between white space, and the tokens that this has to score.
        Of a document that is scored in part (`eval.max_tokens`) the same part of its words counts.
        """
        self._windows.append((document, nll, n_tokens, n_bytes, *whole))

    def parts(self) -> list[Units]:
        """What was counted: documents or, where these are few, windows."""
        if not self._windows:
            raise DataError("nothing to score: no text of the split has a token after the first; give more text")
        windows = np.array(sorted(self._windows, key=itemgetter(0)), dtype=np.float64)
        starts = np.unique(windows[:, 0], return_index=True)[1]  # the first window of each document
        windows, whole = windows[:, 1:4], windows[starts, 4:]  # (windows, 3): nll, tokens, bytes; (documents, 2)
        sums = np.add.reduceat(windows, starts, axis=0)  # (documents, 3)
        words = whole[:, 0] * (sums[:, 1] / whole[:, 1])
        rows, unit = np.column_stack((sums, words)), "document"
        if len(starts) < MIN_DOCUMENTS:
            # Inside a document words are not counted by window; they are shared out by bytes.
            per_byte = np.repeat(words / np.maximum(sums[:, 2], 1), np.diff([*starts, len(windows)]))
            rows, unit = np.column_stack((windows, windows[:, 2] * per_byte)), "window"
        return [Units(language_formula, unit, rows)]


def masked_formula(rows: np.ndarray, counts: np.ndarray) -> Values:
    """The scores of rows of summed loss in nats, labels and hits: of hidden tokens, then of next sentences."""
    nll, n, hits, next_nll, next_n, next_hits = (counts @ rows).T
    scores = {"loss": (nll / n, n), "mlm_loss": (nll / n, n), "mlm_accuracy": (hits / n, n)}
    if rows[:, 4].any():
        scores["loss"] = nll / n + next_nll / next_n, n
        scores["nsp_loss"], scores["nsp_accuracy"] = (next_nll / next_n, next_n), (next_hits / next_n, next_n)
    return scores


def pseudo_formula(rows: np.ndarray, counts: np.ndarray) -> Values:
    """Pseudo-perplexity (Salazar et al. 2020, section 2.3) of rows of (summed loss in nats, tokens)."""
    nll, n = (counts @ rows).T
    return {"pseudo_perplexity": (np.exp(nll / n), n)}


class MaskedLMScores:
    """Losses and accuracies of hidden tokens and of next sentences, each over its own count, and pseudo-perplexity."""

    def __init__(self) -> None:
        self.told: dict[int, tuple[Any, Any]] = {}  # predictions of examples: none
        self._rows: list[tuple[float, ...]] = []  # an example: summed loss, count and hits of each of the two tasks
        self._alone: list[tuple[float, int]] = []  # a stretch of text: summed loss of its tokens, each hidden alone

    def update(self, mlm: tuple[float, int, int], nsp: tuple[float, int, int] = (0.0, 0, 0)) -> None:
        """Count an example: of each task the summed loss in nats, the labels, and how many were guessed right."""
        self._rows.append((*mlm, *nsp))

    def add_stretch(self, nll: float, n_tokens: int) -> None:
        """Count a stretch of text whose tokens were hidden one at a time: their summed loss in nats."""
        self._alone.append((nll, n_tokens))

    def parts(self) -> list[Units]:
        """What was counted: examples, and stretches of text for pseudo-perplexity."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, 6)
        if not rows[:, 1].any():
            raise DataError("nothing to score: no token of the split was hidden; give more text")
        parts = [Units(masked_formula, "example", rows)]
        if self._alone:
            parts.append(Units(pseudo_formula, "stretch", np.array(self._alone, dtype=np.float64)))
        return parts
