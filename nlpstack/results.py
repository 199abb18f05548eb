"""What a result of an evaluation says, whatever was scored: numbers, examples, and gates."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlpstack import __version__
from nlpstack.config import build, check_keys, near, parse_override, resolve
from nlpstack.errors import ConfigError
from nlpstack.metrics import Metric, Score, Units, lower_is_better, make_scores
from nlpstack.metrics.classification import correlation_formula
from nlpstack.recipes import find_recipe
from nlpstack.tasks import EvalConfig, ScoreConfig, TaskConfig
from nlpstack.train.run import finite

_SCORERS = ("numpy", "scikit-learn", "sacrebleu", "rouge-score")
_SORTED_BY = ("loss", "chrf", "entity_f1", "accuracy")  # the first that there is decides what is worst
_PARTS = 4  # of the examples, by length
_MOST_LABELS = 30  # that are listed, the most frequent
_BRIEF = {  # of a part of the data, what is shown
    *("loss", "accuracy", "entity_f1", "entity_precision", "entity_recall", "f1_micro", "bleu", "chrf", "rougeL"),
    *("pearson", "spearman"),
}

TextOf = Callable[[int], str] | None  # an example's number -> its input


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What is asked of an evaluation; None leaves it to the run, or to the default."""

    recipe: str | None = None  # a recipe of eval/; what is given beside it comes first
    data: Sequence[str] = ()  # none: the run's own
    documents: str | None = None
    task: str | None = None  # none: what the model was trained for
    base: str | Path | None = None  # of an adapter, where it is not where the adapter says
    split: str | None = None  # none: test, or val where there is no test
    metrics: Sequence[str] = ()  # none: all
    overrides: Sequence[str] = ()  # "eval.key=value", and of a fine-tuned model "task.key=value" (see READING)
    flags: Mapping[str, Any] = field(default_factory=dict)  # "key" of [eval] -> value
    device: str = "auto"
    dtype: str = "fp32"
    threads: int | None = None
    ignore_unknown: bool = False  # leave out examples with a label that training never saw, and say how many
    baselines: bool | None = None  # what guessing gets, beside the model; None: yes
    examples: int | None = None  # so many of the worst, and scores by length and label; None: none
    command: str = ""  # as typed, for the record


def asked_for(options: EvalOptions) -> tuple[EvalOptions, dict[str, Any]]:
    """The options with the recipe's [score] where they leave it, and all keys of [eval] and [task] that are given."""
    asked: dict[str, Any] = {"eval": {}, "task": {}, "score": ScoreConfig()}
    if options.recipe is not None:
        found = resolve(find_recipe(options.recipe, "eval"), {"eval": EvalConfig, "score": ScoreConfig}, {})
        keys = [path.partition(".")[2] for path in found.origin if path.startswith("eval.")]
        asked = {**asked, **found.sections, "eval": {key: getattr(found.sections["eval"], key) for key in keys}}
    asked["eval"] |= {key: value for key, value in options.flags.items() if value is not None}
    for text in options.overrides:
        for path, value in parse_override(text).items():
            section, _, key = path.partition(".")
            check_keys({section: {key: value}}, {"eval": EvalConfig, "task": TaskConfig}, f"--set {text}")
            asked[section][key] = value
    left = [name for name in ("metrics", "baselines", "examples") if getattr(options, name) in (None, (), [])]
    return replace(options, **{name: getattr(asked["score"], name) for name in left}), asked


def eval_config(asked: Mapping[str, Any], record: Mapping[str, Any]) -> EvalConfig:
    """The run's [eval], with what was asked for now on top."""
    values = dict(record.get("eval", {}))
    if "window" in asked and "stride" not in asked:
        values.pop("stride", None)  # the run's stride belongs to its own window
    origin = {f"eval.{key}": "config.toml" for key in values} | {f"eval.{key}": f"--{key}" for key in asked}
    return build(EvalConfig, {**values, **asked}, "eval", origin, "eval")


def make_result(
    metric: Metric, task: str, signature: str, config: EvalConfig, options: EvalOptions, *, texts: TextOf = None
) -> dict[str, Any]:
    """What a result says of scores: the numbers, what is more than a number, and how they came about."""
    parts = metric.parts()
    scores, drawn = make_scores(parts, signature, n_resamples=config.resamples, seed=config.seed)
    for name in options.metrics:
        if name not in scores:
            raise ConfigError(f"--metric {name}: not a metric of the task {task}{near(name, scores)}")
    result: dict[str, Any] = {"metrics": chosen(scores, options.metrics)}
    details: dict[str, Any] = getattr(metric, "details", dict)()  # what is more than a number, of some metrics
    if details:
        result["details"] = finite(details)
    if options.examples and metric.told:
        fitting = [part for part in parts if len(part.rows) == len(metric.told)]  # one row an example
        result["slices"] = finite(slices(metric, fitting, texts))
        result["examples"] = finite(worst_examples(metric, fitting, options.examples, texts))
    result["resampled"] = {k: {"units": n, "values": finite(values.tolist())} for k, (n, values) in drawn.items()}
    versions = {"nlpstack": __version__, "torch": torch.__version__, **{n: metadata.version(n) for n in _SCORERS}}
    return {**result, "versions": versions, "eval": asdict(config), "command": options.command}


def worst_examples(metric: Metric, parts: Sequence[Units], n: int, texts: TextOf) -> list[dict[str, Any]]:
    """The `n` examples with the highest loss or else the lowest score: input, what was predicted, what is true."""
    order, names, found = sorted(metric.told), getattr(metric, "names", ()), []
    name, badness = _badness(parts)
    for place in np.argsort(-badness, kind="stable")[:n].tolist():
        number = order[place]
        predicted, true = (_named(one, names) for one in metric.told[number])
        about: dict[str, Any] = {"example": number + 1, name: float(abs(badness[place]))}
        found.append(about | ({"input": texts(number)} if texts else {}) | {"predicted": predicted, "true": true})
    return found


def _badness(parts: Sequence[Units]) -> tuple[str, np.ndarray]:
    """What is worst by which score: the score of each example, a better one as a negative number."""
    if parts[0].formula is correlation_formula:  # no pair has a correlation alone
        ranks = [np.unique(column, return_inverse=True)[1] for column in parts[0].rows.T]
        return "rank_gap", np.abs(ranks[0] / max(1, ranks[0].max()) - ranks[1] / max(1, ranks[1].max()))
    alone = np.ones((1, 1))
    name, part = next((name, p) for name in _SORTED_BY for p in parts if name in p.scores(p.rows[:1], alone))
    values = np.array([float(part.scores(row[None], alone)[name][0][0]) for row in part.rows])
    return name, values if lower_is_better(name) else -values


def _named(told: Any, names: Sequence[str]) -> Any:
    """A label number, or truth values of labels, by name; all else as it is."""
    if isinstance(told, bool | str | float) or not names:
        return list(told) if isinstance(told, tuple) else told
    return names[told] if isinstance(told, int) else [name for name, is_on in zip(names, told, strict=True) if is_on]


def slices(metric: Metric, parts: Sequence[Units], texts: TextOf) -> dict[str, dict[str, Any]]:
    """Scores of parts of the data, by the words of the input and, of single labels, by the true label."""
    order, masks = sorted(metric.told), dict[str, np.ndarray]()
    if texts is not None:
        lengths = np.array([len(texts(number).split()) for number in order])
        edges = np.unique(np.quantile(lengths, np.arange(1, _PARTS) / _PARTS).astype(int))
        place = np.searchsorted(edges, lengths)  # the edge itself is in the lower part
        parted = [place == part for part in np.unique(place)]
        masks = {f"{lengths[here].min()} to {lengths[here].max()} words": here for here in parted}
    names = getattr(metric, "names", ())
    if names and isinstance(metric.told[order[0]][1], int):
        labels = np.array([metric.told[number][1] for number in order])
        counts = np.bincount(labels, minlength=len(names))
        most = np.argsort(-counts, kind="stable")[:_MOST_LABELS]
        masks |= {f"label {names[label]}": labels == label for label in most if counts[label]}
    found: dict[str, dict[str, Any]] = {name: {"n": int(mask.sum())} for name, mask in masks.items()}
    for (name, mask), part in product(masks.items(), parts):
        values = part.scores(part.rows, mask[None].astype(np.int64))
        found[name] |= {score: float(value[0]) for score, (value, _) in values.items() if score in _BRIEF}
    return found


def chosen(scores: Mapping[str, Score], names: Sequence[str] = ()) -> dict[str, Any]:
    """Scores as a result has them; of no names all."""
    return {name: finite(scores[name]._asdict()) for name in names or scores}


def listed(result: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each score to show: whose it is (of the model: nothing), its name, itself; of guesses those that are defined."""
    for guess, scores in (("", result["metrics"]), *result.get("baselines", {}).items()):
        for name, score in scores.items():
            if not guess or (score["value"] is not None and name in result["metrics"]):
                yield guess, name, score


def parse_gates(gates: Iterable[str]) -> list[tuple[str, float]]:
    """The metrics and values of gates "METRIC=VALUE"; ConfigError for one that is none."""
    found = []
    for gate in gates:
        name, _, text = gate.partition("=")
        try:
            found.append((name, float(text)))
        except ValueError as error:
            raise ConfigError(f"--fail-under {gate}: wanted METRIC=VALUE, e.g. accuracy=0.9") from error
    return found


def failed_gates(results: Sequence[Mapping[str, Any]], gates: Iterable[tuple[str, float]]) -> list[str]:
    """A line for each score that is worse than a gate asks; ConfigError for a metric that no result has."""
    failed = []
    for name, limit in gates:
        if not (having := [result for result in results if name in result["metrics"]]):
            there = sorted({one for result in results for one in result["metrics"]})
            raise ConfigError(f"--fail-under {name}: no result has this metric{near(name, there)}")
        for result in having:
            value = result["metrics"][name]["value"]
            if value is None or (value > limit if lower_is_better(name) else value < limit):
                worse, shown = "above" if lower_is_better(name) else "below", value if value is None else f"{value:.6g}"
                failed.append(f"{result['model']}: {name} {shown} is {worse} {limit}")
    return failed
