"""Labelled files to examples: texts with labels, words with tags, prompts with what should follow them."""

import csv
import hashlib
import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlpstack.data.readers import OVERLAPS, Note, corpus_suffix, find_splits, json_rows, text_lines
from nlpstack.errors import DataError
from nlpstack.files import sha256_file

Row = tuple[str, dict[str, Any]]  # where it stands, and its fields
Sentence = tuple[int, tuple[str, ...], tuple[str, ...]]  # number of the first line, words, tags
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", tuple: "list"}
# What each scheme of tags asks for. If several fit a whole file, the first is taken.
SCHEMES = {
    "IOB2": "an entity begins with B-TYPE and goes on with I-TYPE",
    "IOB1": "B-TYPE stands only where an entity directly follows another of its type",
    "BIOES": "an entity is S-TYPE, or begins with B-TYPE, goes on with I-TYPE and ends with E-TYPE",
}
_TAG = re.compile(r"O|[BIES]-\S(.*\S)?")


class TextExample(NamedTuple):
    """A text, or a pair of texts, and its label: a class, a number, or any number of classes."""

    where: str  # the file and the line, as in every example
    text: str
    text_b: str | None
    label: str | float | tuple[str, ...] | None


class TaggedExample(NamedTuple):
    """The words of a sentence and their tags, in IOB2."""

    where: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None


class PromptExample(NamedTuple):
    """A prompt, the completion that is trained on, and the references that an answer is scored against."""

    where: str
    prompt: str
    completion: str | None
    references: tuple[str, ...]  # the completion, if a file gives none
    messages: tuple[tuple[str, str], ...] = ()  # role and content of each turn, where a file gives a conversation


Example = TextExample | TaggedExample | PromptExample
Splits = dict[str, list[Example]]


def classes_of(example: Example) -> tuple[str, ...]:
    """The classes of a text or the types of a sentence's entities, sorted, each once; a prompt has none."""
    if isinstance(example, TaggedExample):
        return tuple(sorted({tag[2:] for tag in example.tags or () if tag != "O"}))
    label = example.label if isinstance(example, TextExample) else None
    return (label,) if isinstance(label, str) else tuple(sorted(set(label))) if isinstance(label, tuple) else ()


def inputs_of(example: Example) -> tuple[str, ...]:
    """What a model is given of an example; examples in which it is equal are doubles."""
    if isinstance(example, TaggedExample):
        return example.words
    return (example.prompt,) if isinstance(example, PromptExample) else (example.text, example.text_b or "")


def read_texts(path: Path, note: Note, *, labelled: bool = True) -> list[TextExample]:
    """The rows of a .tsv (no quoting: a `"` is itself), .csv or .jsonl file with `text`, or `text_a` and `text_b`.

    Labels are lists of classes, or numbers (one at least with a point or an exponent), or else classes. `score`, always
    a number, takes the place of a missing `label`. Without `labelled` a file may have neither.
    """
    rows, is_json = list(table_rows(path, note, labelled=labelled)), corpus_suffix(path, [".jsonl"]) is not None
    if not rows:
        return []
    inputs, name = _fields(rows[0][0], list(rows[0][1]), labelled)
    if name == "score":
        note(f"{path}: has no 'label'; its 'score' is read as the label, a number")
    texts = [(*(text_field(where, row, field) for field in inputs), None) for where, row in rows]
    labels = labels_in(rows, name, is_json=is_json) if name else [None] * len(rows)
    return [TextExample(row[0], text[0], text[1], label) for row, text, label in zip(rows, texts, labels, strict=True)]


def _fields(where: str, found: Sequence[str], labelled: bool) -> tuple[tuple[str, ...], str]:
    """The names of the inputs and of the label; of this none if there is none and need not be."""
    inputs = ("text_a", "text_b") if {"text_a", "text_b"} <= set(found) else ("text",)
    name = next((name for name in ("label", "score") if name in found), "label" if labelled else "")
    for field in (*inputs, name) if name else inputs:
        if found.count(field) != 1:
            there = f"{', '.join(map(repr, found)) or 'none':.200}"
            raise DataError(f"{where}: needs one '{field}', found {there}; wanted: text (or text_a, text_b) and label")
    return inputs, name


def table_rows(path: Path, note: Note, *, labelled: bool = False, lines: str = "") -> Iterator[Row]:
    """The rows of a .tsv, .csv or .jsonl file one by one; a table's header must have the fields of a text.

    With `lines` any file but a .jsonl is plain text, whose lines are the field of that name.
    """
    if lines or corpus_suffix(path, [".jsonl"]):
        plain = ((number, {lines: line}) for number, line in enumerate(text_lines(path, note), 1))
        numbered = json_rows(path, note) if corpus_suffix(path, [".jsonl"]) else plain
        yield from ((f"{path}:{number}", row) for number, row in numbered)
        return
    text = (line + "\n" for line in text_lines(path, note))
    is_tsv = corpus_suffix(path, [".tsv"])
    reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if is_tsv else csv.reader(text, strict=True)
    header: list[str] = []
    next_line = 1
    try:
        for fields in reader:
            where, next_line = f"{path}:{next_line}", reader.line_num + 1
            if fields and not header:
                header = fields
                _fields(where, header, labelled)
            elif fields and len(fields) != len(header):
                raise DataError(f"{where}: expected {len(header)} columns, as in the header, found {len(fields)}")
            elif fields:
                yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{next_line}: cannot be read as a row ({error})") from error


def labels_in(rows: Sequence[Row], name: str, *, is_json: bool) -> list[Any]:
    """The labels of rows, in the field `name`: all classes, lists of classes or numbers, as `read_texts` tells them."""
    values: list[Any] = [row.get(name) for _, row in rows]
    if not is_json and (name == "score" or any(not v.lstrip("+-").isdigit() and _NUMBER.fullmatch(v) for v in values)):
        values = [float(value) if _NUMBER.fullmatch(value) else value for value in values]
    for (where, row), value in zip(rows, values, strict=True):
        kind, first = _KINDS.get(type(value)), _KINDS.get(type(values[0]))
        if kind is None or not all(map(_is_text, {"string": [value], "list": value}.get(kind, []))):
            wanted = "a class name, a number or a list of class names"
        elif kind != first or (name == "score" and kind != "number"):
            wanted = "a number" if name == "score" else f"a {first}, as before"
        elif kind != "number" or math.isfinite(float(str(value))):  # float() of a large integer itself may fail
            continue
        else:
            wanted = "finite"
        found = f"found {reprlib.repr(row[name])}" if name in row else "but is missing"
        raise DataError(f"{where}: '{name}' must be {wanted}, {found}")
    if name == "score" or float in map(type, values):
        return [float(str(value)) for value in values]
    return [tuple(v) if isinstance(v, list) else v if isinstance(v, str) else json.dumps(v) for v in values]


def read_tagged(path: Path, note: Note, *, labelled: bool = True) -> list[TaggedExample]:
    """The sentences of a CoNLL file, or the rows of a .jsonl with `tokens` and `tags`; the tags converted to IOB2.

    In CoNLL a line is a word (first column) and its tag (last); tabs part columns or, in a line without one, spaces; a
    blank line ends a sentence. Without `labelled` a file may have words only.
    """
    is_json = corpus_suffix(path, [".jsonl"]) is not None
    found = list(tagged_rows(path, note, labelled=labelled))
    tags, scheme = to_iob2([row[2] for row in found], lambda i, j: f"{path}:{found[i][0] + (0 if is_json else j)}")
    if scheme != "IOB2":
        note(f"{path}: its tags are {scheme}; they are converted to IOB2")
    return [TaggedExample(f"{path}:{row[0]}", row[1], iob2 or None) for row, iob2 in zip(found, tags, strict=True)]


def tagged_rows(path: Path, note: Note, *, labelled: bool = False) -> Iterator[Sentence]:
    """The sentences of a CoNLL file or of a .jsonl with `tokens` one by one, with their tags as they are."""
    if corpus_suffix(path, [".jsonl"]):
        has_tags: bool | None = None  # as the first row
        for number, fields in json_rows(path, note):
            where = f"{path}:{number}"
            has_tags = has_tags if has_tags is not None else labelled or "tags" in fields
            words = text_field(where, fields, "tokens", many=True)
            tags = text_field(where, fields, "tags", many=True) if has_tags else ()
            if has_tags and len(words) != len(tags):
                raise DataError(f"{where}: {len(words)} tokens, but {len(tags)} tags; each token needs one")
            yield number, words, tags
        return
    n_skipped = width = 0
    for is_blank, lines in groupby(enumerate(text_lines(path, note), 1), key=lambda line: not line[1].strip()):
        rows = [(n, line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))) for n, line in lines]
        if is_blank or (len(rows) == 1 and rows[0][1][0] == "-DOCSTART-"):
            n_skipped += not is_blank
            continue
        width = width or max(len(rows[0][1]), 2 if labelled else 1)
        for number, row in rows:
            if len(row) != width or not row[0].strip():
                wanted = {1: "one word", 2: "'word<TAB>tag'"}.get(width, f"'word<TAB>tag' in {width} columns")
                raise DataError(f"{path}:{number}: expected {wanted}, got {', '.join(map(repr, row)):.80}")
        tags = tuple(row[-1] for _, row in rows) if width > 1 else ()
        yield rows[0][0], tuple(row[0] for _, row in rows), tags
    if n_skipped:
        note(f"{path}: {n_skipped:,} -DOCSTART- lines are skipped")


def to_iob2(sentences: Sequence[Sequence[str]], where: Callable[[int, int], str]) -> tuple[list[tuple[str, ...]], str]:
    """The tags of one file as IOB2, sentence by sentence, and the name of the scheme it was written in.

    `where(i, j)` is the place of tag j of sentence i, for the error: the first that is malformed or leaves no scheme.
    """
    fitting = list(SCHEMES)
    for i, tags in enumerate(sentences):
        for j, (before, tag) in enumerate(zip(("O", *tags), tags, strict=False)):
            if not _TAG.fullmatch(tag):
                wanted = "a tag is O, B-TYPE or I-TYPE (in BIOES also E-TYPE, S-TYPE)"
                raise DataError(f"{where(i, j)}: malformed tag {tag!r}; {wanted}")
            ends = j + 1 == len(tags)
            left = [name for name in fitting if _fits(name, before, tag) and not (ends and not _fits(name, tag, "O"))]
            if not left:
                place = (f"after {before!r}" if j else "first") + " and last" * ends + " in a sentence"
                rule = f"so far the file is {fitting[0]}, where {SCHEMES[fitting[0]]}"
                raise DataError(f"{where(i, j)}: tag {tag!r} {place} fits no scheme of tags; {rule}")
            fitting = left
    return [tuple(map(_iob2, ("O", *tags), tags)) for tags in sentences], fitting[0]


def _fits(scheme: str, before: str, tag: str) -> bool:
    goes_on = before[0] in "BI" and before[2:] == tag[2:]
    if scheme == "BIOES":
        return (goes_on and tag[0] in "IE") if before[0] in "BI" else tag[0] in "OBS"
    return tag[0] in ("OB" if scheme == "IOB2" else "OI") or (goes_on and tag[0] in "BI")


def _iob2(before: str, tag: str) -> str:
    begins = tag[0] in "BS" or (tag[0] == "I" and not _fits("IOB2", before, tag))
    return tag if tag == "O" else ("B" if begins else "I") + tag[1:]


def read_prompts(path: Path, note: Note, *, labelled: bool = True) -> list[PromptExample]:
    """The rows of a .jsonl with `prompt` (or `source`) and `completion` (or `target`), `references` (a list) or both.

    Of `messages` (`role`, `content`) the assistant's last is the completion; the prompt is a line `role: content` for
    each before, then `assistant:`, where no chat template takes them as they are. Without `labelled` a prompt will do.
    """
    return [prompt_of(f"{path}:{number}", row, labelled=labelled) for number, row in json_rows(path, note)]


def prompt_of(where: str, row: dict[str, Any], *, labelled: bool) -> PromptExample:
    """The example of a row, as `read_prompts` has it."""
    messages: tuple[tuple[str, str], ...] = ()
    if "messages" in row:
        messages, unrolled = _unrolled(where, row["messages"], labelled)
        row |= unrolled
    prompt = text_field(where, row, "source" if "source" in row and "prompt" not in row else "prompt")
    name = next((name for name in ("completion", "target") if name in row), None)
    given = "references" in row
    if labelled and not name and not given:
        raise DataError(f"{where}: needs 'completion' (or 'target'), 'references' or 'messages'")
    completion = text_field(where, row, name) if name else None
    references = text_field(where, row, "references", many=True) if given else (completion,) if completion else ()
    return PromptExample(where, prompt, completion, references, messages)


def _unrolled(where: str, messages: Any, labelled: bool) -> tuple[tuple[tuple[str, str], ...], dict[str, str]]:
    """The turns of a conversation, and the fields of a row that say the same."""
    turns = messages if isinstance(messages, list) and all(isinstance(turn, dict) for turn in messages) else []
    texts = [(text_field(where, turn, "role"), text_field(where, turn, "content")) for turn in turns]
    answer = [content for role, content in texts[-1:] if role == "assistant"]
    before = texts[: len(texts) - len(answer)]
    if not before or (labelled and not answer):
        raise DataError(f"{where}: 'messages' must be a list of objects, the last the assistant's, others before it")
    prompt = "\n".join([*(f"{role}: {content}" for role, content in before), "assistant:"])
    return tuple(texts), {"prompt": prompt, **({"completion": answer[0]} if answer else {})}


def text_field(where: str, row: dict[str, Any], name: str, *, many: bool = False) -> Any:
    """A field that is a text, or of `many` texts a tuple."""
    texts = row.get(name) if many else [row.get(name)]
    if isinstance(texts, list) and texts and all(map(_is_text, texts)):
        return tuple(texts) if many else texts[0]
    wanted = "list of texts, none of them empty or" if many else "text, neither empty nor"
    found = f"found {reprlib.repr(row[name])}" if name in row else "but is missing"
    raise DataError(f"{where}: '{name}' must be a {wanted} with lone surrogates, {found}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _SURROGATE.search(value)


_READERS = {"classification": read_texts, "ner": read_tagged, "generation": read_prompts}


def read_labelled(files: Mapping[str, Sequence[Path]], task: str, note: Note, *, labelled: bool = True) -> Splits:
    """The examples of each split, file after file; each file must hold some, and all must be labelled alike."""
    splits: Splits = {}
    kinds: dict[str, None] = {}
    for split, path in ((split, path) for split, paths in files.items() for path in paths):
        found: Any = _READERS[task](path, note, labelled=labelled)
        if not found:
            raise DataError(f"{path}: holds no examples; leave it out or give one with some")
        kinds[_kind(found[0])] = None
        if len(kinds) > 1:
            raise DataError(f"{found[0].where}: has {' where the files before have '.join(reversed(kinds))}")
        splits.setdefault(split, []).extend(found)
    return splits


def _kind(example: Example) -> str:
    if not isinstance(example, TextExample):
        return "tags" if isinstance(example, TaggedExample) and example.tags else "no tags"
    return f"{'single' if example.text_b is None else 'paired'} texts, {_KINDS.get(type(example.label), 'no')} labels"


def load_labelled(paths: Sequence[str], task: str, *, val_share: float, seed: int, note: Note) -> Splits:
    """The splits of a data set: train, val (drawn if it has none), and test if it has one; says what is double."""
    splits = read_labelled(find_splits(paths, task), task, note)
    splits = {name.replace("all", "train"): examples for name, examples in splits.items()}
    if "val" not in splits:
        splits |= _cut_val(splits["train"], val_share, seed, note)
    for name, other, where in OVERLAPS:
        known = set(map(inputs_of, splits[other]))
        if double := sum(inputs_of(example) in known for example in splits.get(name, [])):
            note(f"{double:,} of {len(splits[name]):,} {name} examples also stand in the {where} data")
    return {name: splits[name] for name in ("train", "val", "test") if name in splits}


def _cut_val(examples: list[Example], share: float, seed: int, note: Note) -> Splits:
    """Train and val: examples drawn evenly over the order of their labels, each class keeping one in train."""
    n, classes = len(examples), [classes_of(example) for example in examples]
    n_val = min(max(round(n * share), 1), n - 1)
    labels = [getattr(example, "label", None) for example in examples]
    drawn = np.random.default_rng(seed).permutation(n).tolist()
    order = sorted(drawn, key=lambda i: labels[i] if isinstance(labels[i], float) else classes[i])
    left = Counter(chain.from_iterable(classes))
    val: set[int] = set()
    # A second round takes what the first passed over to leave each class its last example.
    for place, i in [*enumerate(order, 1), *((n, i) for i in order)]:
        if i not in val and len(val) < round(place * n_val / n) and all(left[name] > 1 for name in classes[i]):
            val.add(i)
            left.subtract(classes[i])
    if not val:
        raise DataError(f"{examples[0].where}: too few examples to cut a validation part from; give a validation split")
    note(f"no validation split: {len(val):,} of {n:,} examples, drawn evenly over labels (seed {seed}), are held out")
    return {"train": [examples[i] for i in range(n) if i not in val], "val": [examples[i] for i in sorted(val)]}


def split_key(files: Sequence[Path]) -> str:
    """A hash of the bytes of a split's files, in their order."""
    return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()
