"""What can be known of labelled examples before a training: counts, label balance, doubles, strange labels."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from nlpstack.data.labelled import Example, PromptExample, Splits, TaggedExample, TextExample, classes_of, inputs_of

_SHOWN = 5  # places, or labels, that a problem names


def describe(splits: Splits) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Counts of each split, and in words what may spoil a training on the first of them or the scores of the others.

    The counts are `examples`, `labels` (how many of each; in tagged sentences entities of each type) and `doubles`.
    """
    problems: list[str] = []
    report = {name: _describe(name, examples, problems) for name, examples in splits.items()}
    first, train = next(iter(splits.items()))
    known = {one for example in train for one in classes_of(example)}
    if len(known) == 1 and not isinstance(train[0], TaggedExample):
        problems.append(f"{first}: one label only ({', '.join(known)}), so there is nothing to learn")
    seen: dict[object, str] = {}
    for name, examples in splits.items():
        shared = Counter(seen[key] for key in map(inputs_of, examples) if key in seen)
        problems += [f"{name}: {n:,} of {len(examples):,} examples also stand in {one}" for one, n in shared.items()]
        seen = {**dict.fromkeys(map(inputs_of, examples), name), **seen}
        if strange := sorted({one for example in examples for one in classes_of(example)} - known):
            problems.append(f"{name}: labels that training lacks: {_some(strange)}")
    return report, problems


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _describe(name: str, examples: list[Example], problems: list[str]) -> dict[str, Any]:
    """Counts of a split: examples, labels or entities, and doubles."""
    answers: dict[object, set[object]] = {}
    labels: Counter[str] = Counter()
    for one in examples:
        given = answers.setdefault(inputs_of(one), set())
        if isinstance(one, TaggedExample):
            given.add(one.tags)
            labels.update(tag[2:] for tag in one.tags or () if tag.startswith("B-"))
        elif isinstance(one, TextExample):  # a prompt may well have several answers
            given.add(one.label)
            labels.update(classes_of(one))
    doubles = len(examples) - len(answers)
    if doubles and not isinstance(examples[0], PromptExample):
        problems.append(f"{name}: {doubles:,} of {len(examples):,} examples stand there once more")
    if differing := [one.where for one in examples if len(answers[inputs_of(one)]) > 1]:
        problems.append(f"{name}: {len(differing):,} examples are labelled in more than one way: {_some(differing)}")
    return {"examples": len(examples), "labels": dict(labels.most_common()), "doubles": doubles}
