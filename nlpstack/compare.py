"""What `nlpstack compare` does: two results side by side, and whether their difference is more than chance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nlpstack.errors import ConfigError, DataError
from nlpstack.files import read_json_object
from nlpstack.metrics import lower_is_better, percentiles
from nlpstack.train.run import finite

_OWN = ("tok", "context", "window", "stride", "bos")  # in signatures: may differ where a score is not one of tokens
_TOKEN_TASKS = ("causal_lm", "masked_lm", "generation")
_OF_TOKENS = ("loss", "perplexity", "pseudo_perplexity", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy")


def compare(first: str | Path, second: str | Path) -> list[dict[str, Any]]:
    """Each score that two results share: both values, their difference with its 95 % interval, p, and which is better.

    A result is a run, its results.json, or what `eval --save` wrote of one model. Both were drawn on the same resamples
    (Koehn 2004, section 4); p is twice the smaller share of these in which the difference is at most, or at least, 0.
    Raises ConfigError for other data, another task or split, and if no score has the same signature.
    """
    one, two = (_result(Path(path)) for path in (first, second))
    try:
        return _rows(first, second, one, two)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        fault = f"not both what eval writes ({type(error).__name__}: {error})"
        raise DataError(f"{first} and {second}: {fault}; run eval again") from error


def _rows(first: object, second: object, one: Mapping[str, Any], two: Mapping[str, Any]) -> list[dict[str, Any]]:
    of = ("task", "split", "data", "numpy")  # another numpy may draw other resamples
    then, now = ([r["task"], r["split"], r["hashes"]["data"][:12], r["versions"]["numpy"]] for r in (one, two))
    for what, told, other in zip(of, then, now, strict=True):
        if told != other:
            fault = f"not of the same {what} ({told} and {other}), so no score compares"
            raise ConfigError(f"{first} and {second}: {fault}; evaluate both alike, on the same --data and --split")
    rows = [{"metric": name, **_compared(name, one, two)} for name in one["metrics"] if name in two["metrics"]]
    if all("refused" in row for row in rows):
        reasons = "; ".join(f"{row['metric']}: {row['refused']}" for row in rows) or "none is of both"
        raise ConfigError(f"{first} and {second} share no score that compares; {reasons}")
    return rows


def _result(path: Path) -> dict[str, Any]:
    """The one result of a run or file; DataError if it holds none, several, or one without what was drawn."""
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        told = f"has no results; run: nlpstack eval {path}" if path.is_dir() else "no such run or file"
        raise DataError(f"{path}: {told}")
    found = read_json_object(file, DataError).get("results")
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
        count = len(found) if isinstance(found, list) else "no"
        raise DataError(f"{file}: holds {count} results; give the result of one model, as eval writes it into its run")
    if lacking := {"hashes", "versions", "resampled"} - found[0].keys():
        told = f"lacks {', '.join(sorted(lacking))}, which eval writes"
        raise DataError(f"{file}: {told}; run: nlpstack eval {found[0].get('model')}")
    return dict(found[0])


def _differs(name: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """Why a score of two results does not compare; empty if it does."""
    signatures = (result["metrics"][name]["signature"].split("|") for result in (one, two))
    then, now = (dict(field.partition(":")[::2] for field in fields) for fields in signatures)
    by_tokens = (one["task"] in _TOKEN_TASKS and name in _OF_TOKENS) or then.get("unit") == "window"
    free = () if by_tokens else _OWN
    for key in sorted(then.keys() | now.keys()):
        if key not in free and then.get(key) != now.get(key):
            return f"{key} is {then.get(key, 'absent')} and {now.get(key, 'absent')}"
    counts = [result["resampled"].get(name, {}).get("units") for result in (one, two)]
    if None in counts:
        return "it is not resampled"
    return f"{counts[0]} and {counts[1]} units of the same data" if counts[0] != counts[1] else ""


def _compared(name: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    if reason := _differs(name, one, two):
        return {"refused": reason}
    values = [result["metrics"][name]["value"] for result in (one, two)]
    both = np.array([result["resampled"][name]["values"] for result in (one, two)], dtype=np.float64)
    drawn = np.diff(both[:, np.isfinite(both).all(axis=0)], axis=0)[0]
    low, high = percentiles(drawn)
    least = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (least + 1) / (len(drawn) + 1)) if len(drawn) else None  # one more: a chance is never 0
    better = "neither"
    if None not in values and p is not None and p < 0.05:
        better = "second" if (values[1] > values[0]) != lower_is_better(name) else "first"
    shown = {"first": values[0], "second": values[1], "difference": None if None in values else values[1] - values[0]}
    return dict(finite(shown | {"low": low, "high": high, "p": p, "better": better}))
