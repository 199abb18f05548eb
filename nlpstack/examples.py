"""Where a model is wrong: its worst examples, and its scores on parts of the data."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nlpstack.metrics import Metric, Units, lower_is_better
from nlpstack.metrics.classification import correlation_formula

_SORTED_BY = ("loss", "chrf", "entity_f1", "accuracy")  # the first that there is decides what is worst
_PARTS = 4  # of the examples, by length
_MOST_LABELS = 30  # that are listed, the most frequent
_BRIEF = {  # of a part of the data, what is shown
    *("loss", "accuracy", "entity_f1", "entity_precision", "entity_recall", "f1_micro", "bleu", "chrf", "rougeL"),
    *("pearson", "spearman"),
}

TextOf = Callable[[int], str] | None  # an example's number -> its input


def worst_examples(metric: Metric, parts: Sequence[Units], n: int, texts: TextOf) -> list[dict[str, Any]]:
    """The `n` examples with the highest loss or else the lowest score: input, what was predicted, what is true."""
    order = sorted(metric.told)
    name, badness = _badness(parts, len(order))
    names = getattr(metric, "names", ())
    found = []
    for place in np.argsort(-badness, kind="stable")[:n].tolist():
        number = order[place]
        predicted, true = (_named(one, names) for one in metric.told[number])
        about: dict[str, Any] = {"example": number + 1, name: float(abs(badness[place]))}
        found.append(about | ({"input": texts(number)} if texts else {}) | {"predicted": predicted, "true": true})
    return found


def _badness(parts: Sequence[Units], n: int) -> tuple[str, np.ndarray]:
    """What is worst by which score: the score of each example, a better one as a negative number."""
    if parts[0].formula is correlation_formula:  # no pair has a correlation alone
        ranks = [np.unique(column, return_inverse=True)[1] for column in parts[0].rows.T]
        return "rank_gap", np.abs(ranks[0] / max(1, ranks[0].max()) - ranks[1] / max(1, ranks[1].max()))
    alone = np.ones((1, 1))
    fitting = [part for part in parts if len(part.rows) == n]
    name, part = next((name, p) for name in _SORTED_BY for p in fitting if name in p.scores(p.rows[:1], alone))
    values = np.array([float(part.scores(row[None], alone)[name][0][0]) for row in part.rows])
    return name, values if lower_is_better(name) else -values


def _named(told: Any, names: Sequence[str]) -> Any:
    """A label number, or truth values of labels, by name; all else as it is."""
    if isinstance(told, bool | str | float) or not names:
        return list(told) if isinstance(told, tuple) else told
    return names[told] if isinstance(told, int) else [name for name, is_on in zip(names, told, strict=True) if is_on]


def slices(metric: Metric, parts: Sequence[Units], texts: TextOf) -> dict[str, dict[str, Any]]:
    """Scores of parts of the data, by the words of the input and, of single labels, by the true label."""
    order = sorted(metric.told)
    masks: dict[str, np.ndarray] = {}
    if texts is not None:
        lengths = np.array([len(texts(number).split()) for number in order])
        edges = np.unique(np.quantile(lengths, np.arange(1, _PARTS) / _PARTS).astype(int))
        place = np.searchsorted(edges, lengths)  # the edge itself is in the lower part
        for part in np.unique(place):
            here = place == part
            masks[f"{lengths[here].min()} to {lengths[here].max()} words"] = here
    names = getattr(metric, "names", ())
    if names and isinstance(metric.told[order[0]][1], int):
        labels = np.array([metric.told[number][1] for number in order])
        counts = np.bincount(labels, minlength=len(names))
        most = np.argsort(-counts, kind="stable")[:_MOST_LABELS]
        masks |= {f"label {names[label]}": labels == label for label in most if counts[label]}
    return {name: _scores(parts, mask) for name, mask in masks.items()}


def _scores(parts: Sequence[Units], mask: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {"n": int(mask.sum())}
    for part in parts:
        if len(part.rows) == len(mask):
            values = part.scores(part.rows, mask[None].astype(np.int64))
            found |= {name: float(value[0]) for name, (value, _) in values.items() if name in _BRIEF}
    return found
