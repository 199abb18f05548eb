"""Scores of labels, numbers and the likeness of texts; a share of nothing is 0 (scikit-learn's zero_division=0)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nlpstack.errors import DataError
from nlpstack.metrics import Units, Values, mean_formula, share

BINS = 15  # of confidence, for calibration
PAIRS = 10_000  # of different lines, at most, whose cosine is taken
Vectors = np.ndarray | list[np.ndarray]  # (n, D), or (T, D) for each of n texts


def label_formula(rows: np.ndarray, counts: np.ndarray, *, n_labels: int) -> Values:
    """Accuracies, precision, recall and F1 of rows of (predicted, true) label numbers, one of each an example."""
    # Averages are over the labels in gold or predictions (balanced accuracy: in gold) of the examples or the resample.
    right, n = rows[:, 0] == rows[:, 1], counts.sum(axis=1)
    found, true = (np.stack([np.bincount(column, row, n_labels) for row in counts]) for column in rows.T)  # (R, C)
    hits = np.stack([np.bincount(rows[:, 1], row, n_labels) for row in counts * right])
    own = {"accuracy": (counts @ right / n, n), "balanced_accuracy": (_mean(hits, true, true > 0), n)}
    return own | _averages(hits, found, true, found + true > 0, n)


def multi_label_formula(rows: np.ndarray, counts: np.ndarray) -> Values:
    """The same of rows of C predictions and then C truths (0 or 1), averaged over all labels."""
    predicted, gold = np.split(rows, 2, axis=1)
    hits, found, true = (counts @ part for part in (predicted * gold, predicted, gold))
    n = counts.sum(axis=1)
    own = {"accuracy": (counts @ (predicted == gold).all(axis=1) / n, n)}
    return own | _averages(hits, found, true, np.ones_like(true), n)


def _averages(hits: np.ndarray, found: np.ndarray, true: np.ndarray, occurs: np.ndarray, n: np.ndarray) -> Values:
    scores = {}
    for name, above, below in ("precision", hits, found), ("recall", hits, true), ("f1", 2 * hits, found + true):
        scores[f"{name}_micro"] = share(above.sum(axis=1), below.sum(axis=1)), n
        scores[f"{name}_macro"] = _mean(above, below, occurs), n
        scores[f"{name}_weighted"] = _mean(above, below, true), n
    return scores


def _mean(above: np.ndarray, below: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return share((share(above, below) * weights).sum(axis=1), weights.sum(axis=1))


def calibration_formula(rows: np.ndarray, counts: np.ndarray) -> Values:
    """Expected calibration error (Guo et al. 2017, section 2) of rows of (confidence, whether right)."""
    bins = np.minimum((rows[:, 0] * BINS).astype(np.int64), BINS - 1)
    gaps = counts @ ((rows[:, 0] - rows[:, 1])[:, None] * (bins[:, None] == np.arange(BINS)))  # (R, BINS)
    n = counts.sum(axis=1)
    return {"calibration_error": (np.abs(gaps).sum(axis=1) / n, n)}


def correlation_formula(rows: np.ndarray, counts: np.ndarray) -> Values:
    """Pearson's and Spearman's correlation of (predicted, true); of constants, and with any nan, they are nan."""
    (x, y), n = rows.T, counts.sum(axis=1)
    if np.isnan(rows).any():
        return dict.fromkeys(("pearson", "spearman"), (np.full(len(n), np.nan), n))
    x_places, y_places = (np.unique(values, return_inverse=True)[1] for values in (x, y))
    pearson = np.array([_correlation(x, y, row) for row in counts])
    spearman = np.array([_correlation(_ranks(x_places, row), _ranks(y_places, row), row) for row in counts])
    return {"pearson": (pearson, n), "spearman": (spearman, n)}


def _ranks(places: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ranks, average where tied, of a list in which the value at `places[i]` in order stands `counts[i]` times."""
    tied = np.bincount(places, counts)
    return np.asarray((np.cumsum(tied) - (tied - 1) / 2)[places])


def _correlation(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> float:
    """Pearson's correlation of a list in which pair i stands `counts[i]` times; nan if x or y is constant."""
    if np.ptp(x[counts > 0]) == 0 or np.ptp(y[counts > 0]) == 0:
        return float("nan")
    x, y = (values - np.average(values, weights=counts) for values in (x, y))
    return float(np.clip(counts * x @ y / np.sqrt((counts * x @ x) * (counts * y @ y)), -1, 1))


class LabelScores:
    """Scores of examples with labels: one each (`single`), any number of them, or with `names` empty a number."""

    def __init__(self, names: Sequence[str] = (), *, single: bool = True) -> None:
        self.names, self.single = names, single
        self.told: dict[int, tuple[Any, Any]] = {}  # example -> predicted, true
        self._more: dict[int, tuple[float | None, float | None]] = {}  # example -> loss in nats, confidence

    def update(
        self, predicted: Any, gold: Any, nll: float | None = None, confidence: float | None = None, number: int = -1
    ) -> None:
        """Count an example: label numbers, C truth values or numbers, and its loss in nats and confidence, if any."""
        if self.names and self.single:
            assert 0 <= min(predicted, gold) <= max(predicted, gold) < len(self.names)
        elif self.names:
            assert len(predicted) == len(gold) == len(self.names)
        number = len(self.told) if number < 0 else number
        self.told[number], self._more[number] = (predicted, gold), (nll, confidence)

    def parts(self) -> list[Units]:
        """What was counted, example by example; `loss` and `calibration_error` are there if they were counted."""
        if not (order := sorted(self.told)):
            raise DataError("nothing to score: the split has no examples; give more of them")
        pairs = [self.told[number] for number in order]
        rows = np.array(pairs, dtype=np.int64 if self.names else np.float64).reshape(len(order), -1)
        ones = np.ones(len(rows))
        if not self.names:
            errors = Units(mean_formula, "example", np.column_stack((np.diff(rows) ** 2, ones)))
            return [errors, Units(correlation_formula, "example", rows)]
        losses, shares = zip(*(self._more[number] for number in order), strict=True)
        parts = [] if None in losses else [Units(mean_formula, "example", np.column_stack((losses, ones)))]
        formula, about = (label_formula, {"n_labels": len(self.names)}) if self.single else (multi_label_formula, {})
        parts.append(Units(formula, "example", rows, about))
        if None not in shares:
            right = np.column_stack((shares, rows[:, 0] == rows[:, 1]))
            parts.append(Units(calibration_formula, "example", right, readings={"calibration_error": f"|bins:{BINS}"}))
        return parts

    def details(self) -> dict[str, Any]:
        """Of each label precision, recall, F1 and number, the confusion matrix, and accuracy by confidence."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        if not self.names:
            return {}
        order = sorted(self.told)
        predicted, gold = (np.array(column) for column in zip(*(self.told[number] for number in order), strict=True))
        labels = list(range(len(self.names)))
        table = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
        columns = zip(self.names, *(column.tolist() for column in table), strict=True)
        per_class = {name: {"precision": p, "recall": r, "f1": f, "n": n} for name, p, r, f, n in columns}
        found: dict[str, Any] = {"per_class": per_class}
        if not self.single:
            return found
        counts = confusion_matrix(gold, predicted, labels=labels).tolist()  # [true][predicted]
        found["confusion"] = {"labels": list(self.names), "counts": counts}
        shares = np.array([self._more[number][1] for number in order], dtype=np.float64)  # nan where there is none
        if not np.isnan(shares).any():
            bins = np.minimum((shares * BINS).astype(np.int64), BINS - 1)
            n, right, sums = (np.bincount(bins, w, BINS) for w in (np.ones(len(bins)), predicted == gold, shares))
            rows = zip(n.tolist(), share(sums, n).tolist(), share(right, n).tolist(), strict=True)
            found["calibration"] = [{"n": k, "confidence": c, "accuracy": a} for k, c, a in rows if k]
        return found


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    """The cosine of two vectors (D,), computed in fp64; 0 where one is all zeros."""
    one, two = one.astype(np.float64), two.astype(np.float64)
    norms = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / norms if norms > 0 else 0.0


def mean_cosine(vectors: Vectors, *, seed: int = 0) -> tuple[float | None, int]:
    """The mean cosine of pairs of different lines, None if there are none; and how many: all, or PAIRS drawn."""
    lines = [one for one in vectors if len(one)] if isinstance(vectors, list) else vectors[:, None]  # of (T, D)
    n, rng = len(lines), np.random.default_rng(seed)
    if n < 2:
        return None, 0
    if n * (n - 1) // 2 <= PAIRS:
        pairs = np.column_stack(np.triu_indices(n, k=1))
    else:
        first = rng.integers(n, size=PAIRS)
        pairs = np.column_stack((first, (first + rng.integers(1, n, size=PAIRS)) % n))
    # The lines of each pair, and where in them: of a line with a state a token, one of its tokens is drawn.
    drawn = zip(pairs.tolist(), rng.random(pairs.shape).tolist(), strict=True)
    states = ([lines[n][int(at * len(lines[n]))] for n, at in zip(*one, strict=True)] for one in drawn)
    return sum(cosine(one, two) for one, two in states) / len(pairs), len(pairs)


class SimilarityScores(LabelScores):
    """Correlations of cosines with the scores of pairs, and the mean cosine of all their texts."""

    def __init__(self) -> None:
        super().__init__()
        self._vectors: dict[int, np.ndarray] = {}  # text -> (D,); texts 2 n and 2 n + 1 are pair n

    def add(self, text: int, vector: np.ndarray, gold: float) -> None:
        """Count a text's vector; with the second one of a pair, the pair."""
        self._vectors[text] = vector
        if (other := self._vectors.get(text ^ 1)) is not None:
            self.update(cosine(vector, other), gold, number=text // 2)

    def parts(self) -> list[Units]:
        """What was counted, pair by pair; a squared error of cosines would say nothing."""
        return [replace(super().parts()[-1], unit="pair")]

    def details(self) -> dict[str, Any]:
        """The mean cosine of random texts (Ethayarajh 2019, section 4.1), as they are and as z-scores."""
        from sklearn.preprocessing import StandardScaler

        vectors = np.stack([self._vectors[text] for text in sorted(self._vectors)]).astype(np.float64)
        scaled = StandardScaler().fit_transform(vectors)
        return {"mean_cosine": mean_cosine(vectors)[0], "mean_cosine_zscored": mean_cosine(scaled)[0]}
