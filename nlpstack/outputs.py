"""Scores without a model: what any system put out, against what it should have put out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlpstack.data.labelled import Row, labels_in, read_texts, table_rows, tagged_rows, text_field
from nlpstack.data.readers import SUFFIXES_OF, Note, corpus_suffix, json_rows, text_lines
from nlpstack.errors import ConfigError, DataError
from nlpstack.files import sha256_file
from nlpstack.metrics.classification import LabelScores
from nlpstack.metrics.entities import EntityScores
from nlpstack.metrics.text import TextScores
from nlpstack.results import EvalOptions, asked_for, eval_config, make_result
from nlpstack.tasks.generation import sentences


def score_outputs(
    predictions: str | Path, references: str | Path, task: str, options: EvalOptions, note: Note
) -> dict[str, Any]:
    """The result of predictions against references, line by line: texts, labels or numbers, or CoNLL sentences.

    Both files are text, one line an example, or JSON lines (`text`, `label`, `tags`; `references`, or what a data set
    of the task has). Raises DataError where they do not go together.
    """
    if task not in SUFFIXES_OF:
        raise ConfigError(f"--task {task}: files are scored for one of {', '.join(SUFFIXES_OF)}")
    options, asked = asked_for(options)
    if asked["score"].task not in ("", task):
        raise ConfigError(f"--recipe {options.recipe}: is of {asked['score'].task}, and --task {task} is asked for")
    if asked["task"]:
        raise ConfigError(f"--set task.{next(iter(asked['task']))}: says how a model is read, and there is none")
    config = eval_config(asked["eval"], {})
    paths = Path(predictions), Path(references)
    for flag, path in zip(("--predictions", "--references"), paths, strict=True):
        if not path.is_file():
            raise DataError(f"{flag} {path}: no such file")
    read = {"classification": _labels, "ner": _tags, "generation": _texts}[task]
    found, gold = read(paths[0], note, False), read(paths[1], note, True)
    if len(found) != len(gold):
        raise DataError(f"{paths[0]}: {len(found):,} predictions for the {len(gold):,} references of {paths[1]}")
    if not gold:
        raise DataError(f"{paths[1]}: is empty; give references to score against")
    metric: Any
    if task == "generation":
        metric = TextScores(config.texts, sentences)
    elif task == "ner":
        metric = EntityScores()
    else:
        metric, found, gold = _label_scores(found, gold)
    for number, (one, other) in enumerate(zip(found, gold, strict=True)):
        if task == "ner" and len(one) != len(other):
            raise DataError(f"{paths[0]}: sentence {number + 1:,} has {len(one)} tags for {len(other)} words")
        try:
            metric.update(one, other, number=number)
        except DataError as error:  # a tag that is none
            raise DataError(f"{paths[0]} and {paths[1]}: sentence {number + 1:,}: {error}") from error
    hashes = {"data": sha256_file(paths[1]), "predictions": sha256_file(paths[0])}
    about = {"model": str(predictions), "task": task, "data": [str(references)], "split": "file"}
    return {**about, **make_result(metric, task, "outputs:file", config, options), "hashes": hashes}


def _label_scores(found: Sequence[Any], gold: Sequence[Any]) -> tuple[LabelScores, list[Any], list[Any]]:
    both = [*found, *gold]
    if len(kinds := set(map(type, both))) > 1:
        raise DataError("predictions and references have labels of different kinds; give classes, lists or numbers")
    if kinds == {float}:
        return LabelScores(), list(found), list(gold)
    if kinds == {tuple}:
        names = sorted({name for one in both for name in one})
        told, true = ([[name in one for name in names] for one in part] for part in (found, gold))
        return LabelScores(names, single=False), told, true
    ids = {name: number for number, name in enumerate(sorted(set(both)))}
    return LabelScores(list(ids)), [ids[one] for one in found], [ids[one] for one in gold]


def _texts(path: Path, note: Note, is_gold: bool) -> list[Any]:
    def of_json(where: str, row: dict[str, Any]) -> Any:
        names = ("references", "completion", "target", "text") if is_gold else ("text", "completion", "target")
        name = next((one for one in names if one in row), "completion" if is_gold else "text")
        if is_gold:
            return text_field(where, row, name, many=True) if name == "references" else (text_field(where, row, name),)
        if not isinstance(row.get(name), str):
            raise DataError(f"{where}: '{name}' must be a text")
        return row[name]

    if corpus_suffix(path, [".jsonl"]):
        return [of_json(f"{path}:{number}", row) for number, row in json_rows(path, note)]
    lines = list(text_lines(path, note))
    for number, line in enumerate(lines if is_gold else (), 1):
        if not line.strip():
            raise DataError(f"{path}:{number}: the reference is empty; there is nothing to compare with")
    return [(line,) for line in lines] if is_gold else lines


def _labels(path: Path, note: Note, is_gold: bool) -> list[Any]:
    if corpus_suffix(path, [".tsv", ".csv"]):
        return [example.label for example in read_texts(path, note)]
    if is_json := corpus_suffix(path, [".jsonl"]) is not None:
        rows: list[Row] = list(table_rows(path, note))
    else:
        rows = [(f"{path}:{n}", {"label": line.strip()}) for n, line in enumerate(text_lines(path, note), 1)]
    name = "score" if rows and rows[0][1].keys() & {"label", "score"} == {"score"} else "label"
    labels = labels_in(rows, name, is_json=is_json)
    if float in map(type, labels):
        note(f"{path}: numbers, so this is regression")
    return labels


def _tags(path: Path, note: Note, is_gold: bool) -> list[Any]:
    return [tags for _, _, tags in tagged_rows(path, note, labelled=True)]
