"""Bootstrap intervals (Efron & Tibshirani 1993, chapter 13): how far a score would move on another sample."""

import numpy as np

_DRAWS_AT_ONCE = 1 << 22  # counts held at a time: 32 MB


def bootstrap_totals(units: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """Column sums (n_resamples, columns) of `units` (n, columns), each resample drawing n rows with replacement.

    Enough for every score that is a function of sums; the resamples are a pure function of (n, n_resamples, seed).
    Of a single row there are none: it says nothing of how far others would be from it.
    """
    n = len(units)
    if n < 2:
        return np.zeros((0, units.shape[1]))
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // n)
    totals = []
    for start in range(0, n_resamples, at_once):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(at_once, n_resamples - start))
        totals.append(counts @ units.astype(np.float64))
    return np.concatenate(totals) if totals else np.zeros((0, units.shape[1]))


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of a resampled score; nan where there are no resamples."""
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
