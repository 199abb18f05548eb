"""How well hidden tokens and following sentences are guessed, from summed losses and counts."""

import math

import numpy as np

from nlpstack.errors import DataError
from nlpstack.metrics import Score
from nlpstack.metrics.intervals import Formula, scores_of_sums
from nlpstack.metrics.language_model import perplexity

_MLM_NLL, _MLM_N, _MLM_HITS, _NSP_NLL, _NSP_N, _NSP_HITS = range(6)


def _ratio(above: int, below: int) -> Formula:
    return lambda sums: np.asarray(sums[:, above] / sums[:, below])


class MaskedLMScores:
    """Losses and accuracies of hidden tokens and of next sentences, each over its own count, and pseudo-perplexity.

    Pseudo-perplexity is exp of the mean loss of every token, hidden alone (Salazar et al. 2020, section 2.3).
    """

    def __init__(self) -> None:
        self._rows: list[tuple[float, ...]] = []  # an example: summed loss, count and hits of each of the two tasks
        self._alone: list[tuple[float, int]] = []  # a stretch of text: summed loss of its tokens, each hidden alone

    def update(self, mlm: tuple[float, int, int], nsp: tuple[float, int, int] = (0.0, 0, 0)) -> None:
        """Count an example: of each task the summed loss in nats, the labels, and how many were guessed right."""
        self._rows.append((*mlm, *nsp))

    def add_stretch(self, nll: float, n_tokens: int) -> None:
        """Count a stretch of text whose tokens were hidden one at a time: their summed loss in nats."""
        self._alone.append((nll, n_tokens))

    def compute(self, signature: str, *, n_resamples: int, seed: int) -> dict[str, Score]:
        """Every score with its 95 % interval; examples are resampled, for pseudo-perplexity stretches of text."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, 6)
        totals = rows.sum(axis=0)
        if not totals[_MLM_N]:
            raise DataError("nothing to score: no token of the split was hidden; give more text")
        pairs = bool(totals[_NSP_N])
        mlm_loss, nsp_loss = _ratio(_MLM_NLL, _MLM_N), _ratio(_NSP_NLL, _NSP_N)
        formulas: dict[str, tuple[Formula, int]] = {
            "loss": ((lambda s: mlm_loss(s) + nsp_loss(s)) if pairs else mlm_loss, _MLM_N),
            "mlm_loss": (mlm_loss, _MLM_N),
            "mlm_accuracy": (_ratio(_MLM_HITS, _MLM_N), _MLM_N),
        }
        if pairs:
            formulas["nsp_loss"] = nsp_loss, _NSP_N
            formulas["nsp_accuracy"] = _ratio(_NSP_HITS, _NSP_N), _NSP_N
        scores = scores_of_sums(rows, formulas, f"{signature}|unit:example", n_resamples, seed)
        if self._alone:
            alone = np.array(self._alone, dtype=np.float64)
            pseudo: dict[str, tuple[Formula, int]] = {"pseudo_perplexity": (lambda s: perplexity(s[:, 0], s[:, 1]), 1)}
            scores |= scores_of_sums(alone, pseudo, f"{signature}|unit:stretch", n_resamples, seed)
        assert not any(math.isnan(score.value) for score in scores.values())
        return scores
