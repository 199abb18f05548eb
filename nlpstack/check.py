"""What `nlpstack data check` does: labelled files in, all that is known of them before any training out."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nlpstack.data.labelled import Example, PromptExample, TaggedExample, classes_of, labelled_splits, read_labelled
from nlpstack.hub import load_model
from nlpstack.tasks import LabelledTask, TaskConfig, task_on

_SHOWN = 5  # places that a finding names


def check(
    paths: Sequence[str],
    task: str,
    *,
    model: str | Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Counts, label balance, duplicates and, with a `model`, lengths and unknown characters, of each split.

    Findings that may spoil training or scores are listed under `problems`. Raises DataError, with file and line, for
    what cannot be read.
    """
    splits = read_labelled(labelled_splits(paths, task), task, note)
    problems: list[str] = []
    report: dict[str, Any] = {name: _describe(name, examples, problems) for name, examples in splits.items()}
    seen: dict[object, str] = {}
    for name in ("train", "all", "val", "test"):
        shared = Counter(seen[key] for example in splits.get(name, []) if (key := _inputs(example)) in seen)
        problems += [f"{name}: {n:,} examples also stand in {other}" for other, n in shared.items()]
        seen |= {_inputs(example): name for example in splits.get(name, []) if _inputs(example) not in seen}
    known = {one for example in splits.get("train", splits.get("all", [])) for one in classes_of(example)}
    for name in ("val", "test"):
        strange = {one for example in splits.get(name, []) for one in classes_of(example)} - known
        if strange:
            problems.append(f"{name}: labels that training lacks: {', '.join(sorted(strange))}")
    if model is not None:
        ready = load_model(model, note=note)
        train = splits.get("train") or splits["all"]
        loose = TaskConfig(name=task, truncate=True, ignore_unknown=True)  # type: ignore[arg-type]
        made = task_on(train, ready.tokenizer, ready.config, loose, lambda line: None)
        for name, examples in splits.items():
            report[name] |= _lengths(name, examples, made, problems)
    return {"task": task, "splits": report, "problems": problems}


def _inputs(example: Example) -> object:
    """What makes two examples the same."""
    if isinstance(example, TaggedExample):
        return example.words
    return example.prompt if isinstance(example, PromptExample) else (example.text, example.text_b)


def _answer(example: Example) -> object:
    if isinstance(example, TaggedExample):
        return example.tags
    return example.references if isinstance(example, PromptExample) else example.label


def _describe(name: str, examples: list[Example], problems: list[str]) -> dict[str, Any]:
    """Counts of a split: examples, labels or entities, doubles, and doubles whose labels differ."""
    answers: dict[object, set[object]] = {}
    for example in examples:
        answers.setdefault(_inputs(example), set()).add(_answer(example))
    doubles = len(examples) - len(answers)
    if doubles and not isinstance(examples[0], PromptExample):
        differing = [e.where for e in examples if len(answers[_inputs(e)]) > 1]
        problems.append(f"{name}: {doubles:,} examples stand there more than once")
        if differing:
            problems.append(f"{name}: {len(differing):,} of these with other labels: {', '.join(differing[:_SHOWN])}")
    if isinstance(examples[0], TaggedExample):
        tags = [tag for e in examples if isinstance(e, TaggedExample) for tag in e.tags or ()]
        labels = Counter(tag[2:] for tag in tags if tag.startswith("B-"))
    else:
        labels = Counter(one for example in examples for one in classes_of(example))
    return {"examples": len(examples), "labels": dict(labels.most_common()), "doubles": doubles}


def _lengths(name: str, examples: Sequence[Any], task: LabelledTask, problems: list[str]) -> dict[str, Any]:
    """Tokens of a split's rows, those over the model's context, and tokens of unknown characters."""
    notes: list[str] = []
    rows = task.encode(examples, name, notes.append).rows
    problems += [note for note in notes if "left out" not in note]
    lengths = np.array([len(row.tokens) for row in rows])
    unknown = sum(int((row.tokens == task.tokenizer.unk_id).sum()) for row in rows)
    if unknown:
        problems.append(
            f"{name}: {unknown:,} of {lengths.sum():,} tokens are of characters the tokenizer does not know"
        )
    return {"tokens": int(lengths.sum()), "longest": int(lengths.max()), "mean": float(lengths.mean())}
