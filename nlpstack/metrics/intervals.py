"""Bootstrap intervals (Efron & Tibshirani 1993, chapter 13): how far a score would move on another sample."""

from collections.abc import Callable, Mapping

import numpy as np

from nlpstack.metrics import Score

Formula = Callable[[np.ndarray], np.ndarray]  # (n, columns) sums -> (n,) scores
_DRAWS_AT_ONCE = 1 << 22  # counts held at a time: 32 MB


def bootstrap_totals(units: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """Column sums (n_resamples, columns) of `units` (n, columns), each resample drawing n rows with replacement.

    Enough for every score that is a function of sums; the resamples are a pure function of (n, n_resamples, seed).
    Of a single row there are none: it says nothing of how far others would be from it.
    """
    n, n_columns = units.shape
    rng, at_once = np.random.default_rng(seed), max(1, _DRAWS_AT_ONCE // max(1, n))
    totals: list[np.ndarray] = [np.zeros((0, n_columns))]
    for start in range(0, n_resamples if n > 1 else 0, at_once):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(at_once, n_resamples - start))
        totals.append(counts @ units.astype(np.float64))
    return np.concatenate(totals)


def scores_of_sums(
    units: np.ndarray, formulas: Mapping[str, tuple[Formula, int]], signature: str, n_resamples: int, seed: int
) -> dict[str, Score]:
    """Each formula of the column sums of `units` (n, columns), with its interval; n: the sum of the column with it."""
    totals = units.sum(axis=0, keepdims=True)
    resampled = bootstrap_totals(units, n_resamples, seed)
    signature = f"{signature}|resamples:{n_resamples}|seed:{seed}"
    found = {}
    for name, (formula, column) in formulas.items():
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value, interval = float(formula(totals)[0]), percentiles(formula(resampled))
        found[name] = Score(value, *interval, round(totals[0, column]), signature)
    return found


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of a resampled score; nan where there are no resamples."""
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
