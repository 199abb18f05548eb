"""What `nlpstack tokenizer` and `nlpstack data` do: where readers meet tokenizers."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nlpstack.config import build
from nlpstack.data.corpus import whole_corpus
from nlpstack.data.labelled import TaggedExample, TextExample, classes_of, inputs_of, read_labelled
from nlpstack.data.readers import DataConfig, Note, find_splits, mute
from nlpstack.errors import ConfigError, DataError, some
from nlpstack.files import MANIFEST, new_folder
from nlpstack.hub import load_model
from nlpstack.tasks import CausalLM, MaskedLM, TaskConfig, labelled_task
from nlpstack.tasks.corpus import make_tokenizer, tokenize_split
from nlpstack.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer
from nlpstack.tokenizer.base import ROLES


def train_tokenizer_on(
    paths: Sequence[str], values: Mapping[str, Any], out: str | Path, *, overwrite: bool = False, note: Note = mute
) -> Tokenizer:
    """Train a tokenizer on files (of data with splits on train), by its kind and vocab_size, and write its folder."""
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise ConfigError(f"{out}: exists; give another --out, or --overwrite to replace a tokenizer")
        if not (folder / MANIFEST).is_file() or (folder / "config.json").exists():
            raise ConfigError(f"{out}: is not a tokenizer's folder, so it is not replaced; give another --out")
    given = {key: value for key, value in values.items() if value is not None}
    config: TokenizerConfig = build(TokenizerConfig, given, "tokenizer", {}, "flag")
    splits = whole_corpus(DataConfig(paths=list(paths)), note)
    with tempfile.TemporaryDirectory() as cache:
        tokenizer = make_tokenizer(splits.get("train") or splits["all"], config, Path(cache), note)
    with new_folder(folder) as made:
        tokenizer.save(made)
    return tokenizer


def tokenize(
    paths: Sequence[str],
    tokenizer: str | Path,
    out: str | Path,
    *,
    arch: str = "gpt",
    part: tuple[int, int] = (1, 1),
    note: Note = mute,
    **given: Any,
) -> dict[str, Any]:
    """Turn a slice of a corpus into token shards in a folder of `out`.

    `part` is (i, n): of its files each n-th from the i-th on or, where n is above their number, a stretch of documents.
    `given` are values of DataConfig. `pretrain --data` takes such folders, or one that holds them; `arch`: gpt; bert,
    which keeps the ends of sentences; roberta. One that is killed goes on where it was.
    """
    splits, (number, n) = find_splits(paths), part
    files = splits.get("train") or splits["all"]
    chosen = files[number - 1 :: n] if 1 <= number <= n <= len(files) else files
    config: DataConfig = build(DataConfig, {**given, "paths": [str(file) for file in chosen]}, "data", {}, "flag")
    text = whole_corpus(config, note)["all"]
    if chosen is files and part != (1, 1):
        n_documents = len(text.digests)
        if not 1 <= number <= n <= n_documents:
            raise ConfigError(f"--slice {number}/{n}: wanted I/N, I at most N, N at most the {n_documents:,} documents")
        text = replace(text, start=n_documents * (number - 1) // n, stop=n_documents * number // n)
    encoder = load_tokenizer(tokenizer)
    masked = partial(MaskedLM, encoder, TaskConfig(nsp=arch == "bert"), 0, language=config.language)
    layout = (CausalLM(encoder) if arch == "gpt" else masked()).layout
    shards = tokenize_split(text, encoder, layout, Path(out), note=note)
    about = {"out": str(shards.folder), "files": len(config.paths), "documents": len(shards.ends)}
    return {**about, "tokens": len(shards), "bytes": shards.n_bytes}


def parse_ids(text: str, vocab_size: int) -> list[int]:
    """Token ids from words, a JSON list, or the object that `encode --json` prints."""
    try:
        parsed = json.loads(text) if text.lstrip().startswith(("[", "{")) else [int(word) for word in text.split()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"standard input: expected token ids separated by white space, or JSON ({error})") from error
    ids = parsed.get("ids") if isinstance(parsed, dict) else parsed
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise DataError("standard input: expected a list of whole numbers")
    for token in ids:
        if not 0 <= token < vocab_size:
            raise DataError(f"standard input: {token} is no id of this tokenizer, whose ids are 0 to {vocab_size - 1}")
    return ids


def describe_tokenizer(path: str | Path, text: str | None = None) -> dict[str, Any]:
    """Size, special ids and hash of a tokenizer and, with a text, the bytes of its pieces and what they save."""
    tokenizer = load_tokenizer(path)
    special = {name: getattr(tokenizer, f"{name}_id") for name in ROLES}
    found: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "special_ids": special, "hash": tokenizer.hash}
    if text is not None:
        found["ids"] = ids = tokenizer.encode(text)
        found["pieces"] = [tokenizer.token_bytes(token).decode("utf-8", errors="backslashreplace") for token in ids]
        found["bytes_per_token"] = round(len(text.encode("utf-8")) / max(1, len(ids)), 3)
    return found


def check_data(
    paths: Sequence[str], task: str, *, model: str | Path | None = None, note: Note = mute
) -> dict[str, Any]:
    """Counts, label balance and doubles of each split of labelled files and, with a `model`, its tokens in them.

    Under `splits` each has `examples`, `labels` (how many of each; in tagged sentences entities of each type) and
    `doubles`, and with a model `tokens`, `longest`, `mean` and `unknown` (tokens of characters that it lacks). Under
    `problems` stands what may spoil a training or scores. DataError, with file and line, for what cannot be read.
    """
    found = read_labelled(find_splits(paths, task), task, note)
    splits: dict[str, Any] = {name: found[name] for name in ("train", "all", "val", "test") if name in found}
    problems: list[str] = []
    report = {name: _counts(name, examples, problems) for name, examples in splits.items()}
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
            problems.append(f"{name}: labels that training lacks: {some(strange)}")
    if model is not None:
        ready = load_model(model, note=note)
        loose = TaskConfig(name=task, truncate=True)  # type: ignore[arg-type]
        made = labelled_task(ready, loose, train)
        for name, examples in splits.items():
            readable: list[Any] = [example for example in examples if known.issuperset(classes_of(example))]
            rows = made.encode(readable, name, problems.append)  # rows over the context are a problem
            sizes = rows.lengths
            n, longest, mean = sum(sizes), max(sizes, default=0), sum(sizes) / max(1, len(sizes))
            if unknown := rows.count(made.tokenizer.unk_id):
                problems.append(f"{name}: {unknown:,} of {n:,} tokens are of characters the tokenizer does not know")
            report[name] |= {"tokens": n, "longest": longest, "mean": mean, "unknown": unknown}
    return {"task": task, "splits": report, "problems": problems}


def _counts(name: str, examples: Sequence[Any], problems: list[str]) -> dict[str, Any]:
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
    if doubles and isinstance(examples[0], TaggedExample | TextExample):
        problems.append(f"{name}: {doubles:,} of {len(examples):,} examples stand there once more")
    if differing := [one.where for one in examples if len(answers[inputs_of(one)]) > 1]:
        problems.append(f"{name}: {len(differing):,} examples are labelled in more than one way: {some(differing)}")
    return {"examples": len(examples), "labels": dict(labels.most_common()), "doubles": doubles}
