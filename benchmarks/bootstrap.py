"""What intervals cost: 1,000 resamples of 10,000 examples beside one scoring of them.

    python benchmarks/bootstrap.py [--pairs 5]

One scoring is filling the metric and computing it without resamples; the bootstrap is what resamples add. Each is timed
three times and the best counts; the table has the medians of the pairs' ratios, and the bootstrap's seconds. Texts take
most of the ten minutes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from nlpstack.metrics import Metric, compute, drawn_scores
from nlpstack.metrics.classification import LabelScores
from nlpstack.metrics.entities import EntityScores
from nlpstack.metrics.text import TextScores, TextScoring

N, RESAMPLES = 10_000, 1_000
WORDS = ["the", "of", "and", "a", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are", "as", "with"]


def labels() -> Callable[[], Metric]:
    """77 classes, as many as BANKING77 has."""
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 77, size=N)
    told = np.where(rng.random(N) < 0.8, gold, rng.integers(0, 77, size=N))
    names, rows = [str(i) for i in range(77)], list(zip(told.tolist(), gold.tolist(), strict=True))
    return lambda: _filled(LabelScores(names), rows)


def entities() -> Callable[[], Metric]:
    """Sentences of twenty words."""
    rng = np.random.default_rng(0)
    tags = rng.choice(["O", "B-X", "I-X", "B-Y"], size=(N, 20), p=[0.8, 0.1, 0.05, 0.05])
    told = np.where(rng.random((N, 20)) < 0.9, tags, "O")
    rows = list(zip(told.tolist(), tags.tolist(), strict=True))
    return lambda: _filled(EntityScores(), rows)


def texts() -> Callable[[], Metric]:
    """Texts of about twenty words with one reference."""
    rng = np.random.default_rng(0)
    gold = [" ".join(rng.choice(WORDS, size=rng.integers(10, 30))) for _ in range(N)]
    told = [" ".join(word for word in text.split() if rng.random() < 0.9) for text in gold]
    rows = [(one, (other,)) for one, other in zip(told, gold, strict=True)]
    return lambda: _filled(TextScores(TextScoring()), rows)


def numbers() -> Callable[[], Metric]:
    """Correlations: ranked anew in each resample, so without sufficient statistics."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=N)
    rows = list(zip((gold + rng.normal(size=N)).tolist(), gold.tolist(), strict=True))
    return lambda: _filled(LabelScores(), rows)


def _filled(metric: Any, rows: list[Any]) -> Metric:
    for predicted, gold in rows:
        metric.update(predicted, gold)
    return metric  # type: ignore[no-any-return]


def kinds(metric: Metric) -> dict[str, float]:
    """Seconds that the resamples of each part take."""
    found = {}
    for part in metric.parts():
        started = time.perf_counter()
        drawn_scores([part], n_resamples=RESAMPLES, seed=0)
        name = part.about.get("names", [part.about.get("name", part.formula.__name__.removesuffix("_formula"))])[0]
        found[str(name)] = time.perf_counter() - started
    return found


def timed(fill: Callable[[], Metric], n_resamples: int) -> float:
    """Of filling and computing a metric."""
    started = time.perf_counter()
    compute(fill(), "", n_resamples=n_resamples, seed=0)
    return time.perf_counter() - started


def main() -> None:
    """Time each metric and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    print("| metric | one scoring, s | bootstrap / scoring | spread | bootstrap, s |\n|---|--:|--:|--:|--:|")
    for make in (labels, entities, texts, numbers):
        fill = make()
        whole, ratios, parts = [], [], []
        for _ in range(options.pairs):
            once, with_resamples = (min(timed(fill, n) for _ in range(3)) for n in (0, RESAMPLES))
            whole.append(once)
            ratios.append((with_resamples - once) / once)
            parts.append(kinds(fill()))
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        seconds = ", ".join(f"{name} {statistics.median(p[name] for p in parts):.2f}" for name in parts[0])
        medians = f"{statistics.median(whole):.3f} | {statistics.median(ratios):.2f}"
        print(f"| {make.__name__} | {medians} | {spread} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
