"""Scores of a whole corpus: named numbers, each with an interval and a signature. No torch here."""

from typing import Any, Protocol

from nlpstack.metrics.intervals import Score, Units, make_scores

__all__ = ["Metric", "Score", "Units", "compute", "lower_is_better"]

_LOSSES = ("loss", "perplexity", "bits_per_byte", "calibration_error", "repetition")  # ends of names


def lower_is_better(score: str) -> bool:
    """Whether a smaller value of a score is the better one."""
    return score.endswith(_LOSSES)


class Metric(Protocol):
    """Predictions and references in, named numbers out."""

    told: dict[int, tuple[Any, Any]]  # number of an example -> what was predicted, what is true; none of plain text

    def parts(self) -> list[Units]:
        """What was counted, in the order of the data; DataError if nothing was."""


def compute(metric: Metric, signature: str, *, n_resamples: int, seed: int) -> dict[str, Score]:
    """Every score of what was counted, each with its 95 % interval."""
    return make_scores(metric.parts(), signature, n_resamples=n_resamples, seed=seed)[0]
