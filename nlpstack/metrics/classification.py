"""Scores of labels and of numbers; a share of nothing is 0, as with scikit-learn's zero_division=0."""

from collections.abc import Callable, Sequence

import numpy as np

from nlpstack.errors import DataError
from nlpstack.metrics import Score
from nlpstack.metrics.intervals import percentiles

Row = tuple[float, list[int], list[int]]  # an example: its loss in nats, its predicted and its true labels
Formula = Callable[[np.ndarray], dict[str, float]]  # how often each example counts -> scores


class ClassificationScores:
    """Loss, accuracies, precision, recall and F1 of examples with one label each.

    Averages are over the labels in gold or predictions (balanced accuracy: in gold) of the examples or the resample.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._n_labels = len(labels)
        self._rows: list[Row] = []

    def update(self, predicted: int, gold: int, nll: float) -> None:
        """Count an example: the numbers of its predicted and true label, and the loss in nats."""
        assert 0 <= min(predicted, gold) <= max(predicted, gold) < self._n_labels
        self._rows.append((nll, [predicted], [gold]))

    def compute(self, signature: str, *, n_resamples: int, seed: int) -> dict[str, Score]:
        """Every score with its 95 % interval; examples are resampled."""
        formula = _label_formula(self._rows, self._n_labels, single=True)
        return _scores(formula, len(self._rows), signature, n_resamples, seed)


class MultiLabelScores:
    """Loss, precision, recall and F1 over all labels, and the share of examples with every label right (`accuracy`)."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._n_labels = len(labels)
        self._rows: list[Row] = []

    def update(self, predicted: Sequence[bool], gold: Sequence[bool], nll: float) -> None:
        """Count an example: of each label whether it is predicted and true, and the loss in nats."""
        assert len(predicted) == len(gold) == self._n_labels
        self._rows.append((nll, np.flatnonzero(predicted).tolist(), np.flatnonzero(gold).tolist()))

    def compute(self, signature: str, *, n_resamples: int, seed: int) -> dict[str, Score]:
        """Every score with its 95 % interval; examples are resampled."""
        formula = _label_formula(self._rows, self._n_labels, single=False)
        return _scores(formula, len(self._rows), signature, n_resamples, seed)


class RegressionScores:
    """Mean squared error (`loss`) and correlations; with predictions or gold all the same these are nan."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, float]] = []

    def update(self, predicted: float, gold: float) -> None:
        """Count an example."""
        self._rows.append((predicted, gold))

    def compute(self, signature: str, *, n_resamples: int, seed: int) -> dict[str, Score]:
        """Every score with its 95 % interval; examples are resampled, and ranked anew in each resample."""
        x, y = np.array(self._rows, dtype=np.float64).reshape(-1, 2).T

        def formula(counts: np.ndarray) -> dict[str, float]:
            pearson, spearman = _correlation(x, y, counts), _correlation(_ranks(x, counts), _ranks(y, counts), counts)
            return {"loss": float(np.average((x - y) ** 2, weights=counts)), "pearson": pearson, "spearman": spearman}

        return _scores(formula, len(x), signature, n_resamples, seed)


def _scores(formula: Formula, n: int, signature: str, n_resamples: int, seed: int) -> dict[str, Score]:
    """The scores of n examples; the interval of each is over the resamples in which it is defined."""
    if not n:
        raise DataError("nothing to score: the split has no examples; give more of them")
    rng = np.random.default_rng(seed)  # draws the resamples that bootstrap_totals does
    draws = (rng.multinomial(n, np.full(n, 1 / n)) for _ in range(n_resamples if n > 1 else 0))
    resampled = [formula(counts) for counts in draws]
    signature = f"{signature}|unit:example|resamples:{n_resamples}|seed:{seed}"
    scores = {}
    for name, value in formula(np.ones(n)).items():
        values = np.array([other[name] for other in resampled])
        scores[name] = Score(value, *percentiles(values[~np.isnan(values)]), n, signature)
    return scores


def _label_formula(rows: list[Row], n_labels: int, *, single: bool) -> Formula:
    """The scores of examples with one label each (`single`) or any number of labels."""
    nll = np.array([loss for loss, _, _ in rows])
    right = np.array([found == true for _, found, true in rows])
    found_at, true_at = _pairs([found for _, found, _ in rows]), _pairs([true for _, _, true in rows])
    hits_at = _pairs([[label for label in found if label in true] for _, found, true in rows])

    def formula(counts: np.ndarray) -> dict[str, float]:
        hits, found, true = (np.bincount(at[1], counts[at[0]], n_labels) for at in (hits_at, found_at, true_at))
        scores = {"loss": np.average(nll, weights=counts), "accuracy": np.average(right, weights=counts)}
        if single:
            scores["balanced_accuracy"] = _mean(hits, true, true > 0)
        occurs = found + true > 0 if single else np.ones(n_labels)
        for name, above, below in ("precision", hits, found), ("recall", hits, true), ("f1", 2 * hits, found + true):
            scores[f"{name}_micro"] = above.sum() / max(1, below.sum())
            scores[f"{name}_macro"] = _mean(above, below, occurs)
            scores[f"{name}_weighted"] = _mean(above, below, true)
        return {name: float(score) for name, score in scores.items()}

    return formula


def _pairs(labels: list[list[int]]) -> np.ndarray:
    """Two rows: an example, a label that it has."""
    return np.array([(i, label) for i, row in enumerate(labels) for label in row], dtype=np.int64).reshape(-1, 2).T


def _mean(above: np.ndarray, below: np.ndarray, weights: np.ndarray) -> float:
    """Of the labels' shares, `above` / `below`; all are counts, so that 0 of 0 makes 0."""
    return float((above / np.maximum(1, below) * weights).sum() / max(1, weights.sum()))


def _ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ranks, average where tied, of a list in which value i stands `counts[i]` times; of nan, nan."""
    places = np.unique(values, return_inverse=True)[1]
    tied = np.bincount(places, counts)
    return np.where(np.isnan(values), np.nan, (np.cumsum(tied) - (tied - 1) / 2)[places])


def _correlation(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> float:
    """Pearson's correlation of a list in which pair i stands `counts[i]` times; nan if x or y is constant."""
    if np.ptp(x[counts > 0]) == 0 or np.ptp(y[counts > 0]) == 0:
        return float("nan")
    x, y = (values - np.average(values, weights=counts) for values in (x, y))
    return float(np.clip(counts * x @ y / np.sqrt((counts * x @ x) * (counts * y @ y)), -1, 1))
