"""How well hidden tokens and following sentences are guessed, from summed losses and counts."""

from typing import Any

import numpy as np

from nlpstack.errors import DataError
from nlpstack.metrics.intervals import Units, Values
from nlpstack.metrics.language_model import perplexity


def masked_formula(rows: np.ndarray, counts: np.ndarray) -> Values:
    """The scores of rows of summed loss in nats, labels and hits: of hidden tokens, then of next sentences."""
    nll, n, hits, next_nll, next_n, next_hits = (counts @ rows).T
    scores = {"loss": (nll / n, n), "mlm_loss": (nll / n, n), "mlm_accuracy": (hits / n, n)}
    if rows[:, 4].any():
        scores["loss"] = nll / n + next_nll / next_n, n
        scores["nsp_loss"], scores["nsp_accuracy"] = (next_nll / next_n, next_n), (next_hits / next_n, next_n)
    return scores


def pseudo_formula(rows: np.ndarray, counts: np.ndarray) -> Values:
    """Pseudo-perplexity of rows of (summed loss in nats, tokens)."""
    nll, n = (counts @ rows).T
    return {"pseudo_perplexity": (perplexity(nll, n), n)}


class MaskedLMScores:
    """Losses and accuracies of hidden tokens and of next sentences, each over its own count, and pseudo-perplexity.

    Pseudo-perplexity is exp of the mean loss of every token, hidden alone (Salazar et al. 2020, section 2.3).
    """

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
