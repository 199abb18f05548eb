"""Scores with bootstrap intervals (Efron & Tibshirani 1993, chapter 13): how far each would move on another sample."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Values = dict[str, tuple[np.ndarray, np.ndarray]]  # score -> its values (R,), what they are averaged over (R,)
Formula = Callable[..., Values]  # of rows (n, k), how often each of them counts (R, n), and more by name
_DRAWS_AT_ONCE = 1 << 19  # counts held at a time: 4 MB
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

    def compute(self, signature: str, *, n_resamples: int, seed: int) -> dict[str, Score]:
        """Every score with its 95 % interval, over the resamples in which it is defined; nan where there are none."""
        n, rows, sizes = len(self.rows), self.rows, np.ones(len(self.rows), dtype=np.int64)
        if n and rows.shape[1] <= _NARROW:  # of equal rows one is enough, drawn as often as all of them together
            rows, sizes = np.unique(rows, axis=0, return_counts=True)
        drawn: dict[str, list[np.ndarray]] = {}
        for counts in resamples(sizes, n_resamples * self.resampled, seed):
            for name, (values, _) in self.scores(rows, counts).items():
                drawn.setdefault(name, []).append(values)
        return {
            name: Score(
                float(value[0]),
                *percentiles(np.concatenate(drawn.get(name, [np.zeros(0)]))),
                round(float(above[0])),
                f"{signature}{self.readings.get(name, '')}|unit:{self.unit}|resamples:{n_resamples}|seed:{seed}",
            )
            for name, (value, above) in self.scores(rows, sizes[None]).items()
        }


def resamples(sizes: np.ndarray, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn (R, len(sizes)), part by part, where row i stands for `sizes[i]` equal units.

    A resample draws as many units as there are, with replacement; all are a pure function of the arguments. Of a
    single unit there are none: it says nothing of how far others would be from it.
    """
    rng, n = np.random.default_rng(seed), int(sizes.sum())
    at_once = max(1, _DRAWS_AT_ONCE // max(1, n))
    for start in range(0, n_resamples if n > 1 else 0, at_once):
        n_rows = min(at_once, n_resamples - start)
        if len(sizes) <= n // 16:
            yield rng.multinomial(n, sizes / n, size=n_rows)
            continue
        draws = rng.integers(n, size=(n_rows, n))
        if len(sizes) < n:
            draws = np.repeat(np.arange(len(sizes)), sizes)[draws]
        draws += np.arange(n_rows)[:, None] * len(sizes)
        yield np.bincount(draws.ravel(), minlength=n_rows * len(sizes)).reshape(n_rows, -1)


def share(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Of counts: 0 of 0 makes 0."""
    return np.asarray(above / np.maximum(1, below))


def mean_formula(rows: np.ndarray, counts: np.ndarray, *, name: str) -> Values:
    """A mean: rows of (sum, number)."""
    sums, n = (counts @ rows).T
    return {name: (sums / n, n)}


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of a resampled score; nan where there are no resamples."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    with np.errstate(invalid="ignore"):  # of infinite ones
        low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
