"""Scores of a whole corpus, each with a bootstrap interval (Efron & Tibshirani 1993, chapter 13). No torch here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

Values = dict[str, tuple[np.ndarray, np.ndarray]]  # score -> its values (R,), what they are averaged over (R,)
Drawn = dict[str, tuple[int, np.ndarray]]  # score -> units that are drawn, its values on resamples of them (R,)
Formula = Callable[..., Values]  # of rows (n, k), how often each of them counts (R, n), and more by name
_DRAWS_AT_ONCE = 1 << 19  # draws held at a time: 4 MB
_LOSSES = ("loss", "perplexity", "bits_per_byte", "calibration_error", "repetition")  # ends of names
_NARROW = 16  # columns up to which equal rows are looked for


class Score(NamedTuple):
    """One number and what it says of the truth."""

    value: float
    low: float  # 95 % bootstrap interval
    high: float
    n: int  # what the value is averaged over: tokens, words, bytes, examples
    signature: str  # how it was counted: two scores compare only if theirs agree


@dataclass(frozen=True)
class Units:
    """What scores are a function of: a row of numbers for each unit that is resampled, in the order of the data."""

    formula: Formula
    unit: str  # what a row is of: example, sentence, window, document
    rows: np.ndarray  # (n, k)
    about: Mapping[str, Any] = field(default_factory=dict)  # what else the formula takes
    readings: Mapping[str, str] = field(default_factory=dict)  # score -> what its signature has beside that of all
    resampled: bool = True  # false: samples drawn with replacement say nothing of it, so it has no interval

    def scores(self, rows: np.ndarray, counts: np.ndarray) -> Values:
        """The formula of these rows; what is not defined is nan."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self.formula(rows, counts, **self.about)


def drawn_scores(parts: Sequence[Units], *, n_resamples: int, seed: int) -> Drawn:
    """Each score on each resample of its units, which are nan where it is not defined."""
    found: dict[str, tuple[int, list[np.ndarray]]] = {}
    parts = [part for part in parts if part.resampled]
    # Parts with as many units share their resamples: those of two systems on the same units are pairs (Koehn 2004).
    for n in dict.fromkeys(len(part.rows) for part in parts):
        same = [(part, *_distinct(part.rows)) for part in parts if len(part.rows) == n]
        for draws in resamples(n, n_resamples, seed):
            for part, rows, place in same:
                counts = np.array([np.bincount(place[row], minlength=len(rows)) for row in draws])
                for name, (values, _) in part.scores(rows, counts).items():
                    found.setdefault(name, (n, []))[1].append(values)
    return {name: (n, np.concatenate(values)) for name, (n, values) in found.items()}


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows, of equal ones just one, and which of these each unit has; broad ones as they are."""
    if rows.shape[1] > _NARROW:
        return rows, np.arange(len(rows))
    rows, place = np.unique(rows, axis=0, return_inverse=True)
    return rows, place.ravel()


def make_scores(parts: list[Units], signature: str, *, n_resamples: int, seed: int) -> tuple[dict[str, Score], Drawn]:
    """Every score with the 95 % interval of its resamples, and these; nan where there are none."""
    found, drawn = {}, drawn_scores(parts, n_resamples=n_resamples, seed=seed)
    for part in parts:
        for name, (value, above) in part.scores(part.rows, np.ones((1, len(part.rows)), dtype=np.int64)).items():
            how = f"{part.readings.get(name, '')}|unit:{part.unit}|resamples:{n_resamples}|seed:{seed}"
            interval = percentiles(drawn[name][1] if name in drawn else np.zeros(0))
            found[name] = Score(float(value[0]), *interval, round(float(above[0])), signature + how)
    return found, drawn


def resamples(n: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Resamples (R, n) of n units, each n of their numbers drawn with replacement, in parts; a pure function."""
    rng, at_once = np.random.default_rng(seed), max(1, _DRAWS_AT_ONCE // max(1, n))
    # None of a single unit, which says nothing of how far others would be from it.
    for start in range(0, n_resamples if n > 1 else 0, at_once):
        yield rng.integers(n, size=(min(at_once, n_resamples - start), n))


def share(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Of counts: 0 of 0 makes 0."""
    return np.asarray(above / np.maximum(1, below))


def mean_formula(rows: np.ndarray, counts: np.ndarray, *, name: str = "loss") -> Values:
    """A mean: rows of (sum, number)."""
    sums, n = (counts @ rows).T
    return {name: (sums / n, n)}


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of a resampled score; nan where there are no resamples."""
    values = values[~np.isnan(values)]
    with np.errstate(invalid="ignore"):  # of infinite ones
        low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


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
