"""Splits of labelled data are found, cut and compared as they should be; real data sets are read in full."""

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.data.labelled import (
    classes_of,
    load_labelled,
    read_labelled,
    read_texts,
    split_key,
)
from nlpstack.data.readers import SUFFIXES_OF, find_splits
from nlpstack.errors import DataError
from nlpstack.files import sha256_file
from nlpstack.samples import sample

QUICK = settings(max_examples=60, deadline=None)  # deadlines fail on a busy machine


def write(path: Path, text: str | list[Any]) -> Path:
    """The text, or a list's JSON lines."""
    path.write_text(text if isinstance(text, str) else "".join(json.dumps(row) + "\n" for row in text))
    return path


def refused(action: Callable[[], object], where: str, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        action()
    message = str(caught.value)
    assert message.startswith(f"{where}: "), message
    for part in parts:
        assert part in message, message


def load(
    *paths: Path | str, task: str = "classification", share: float = 0.1, seed: int = 0, notes: list[str] | None = None
) -> dict[str, list[Any]]:
    note = (notes if notes is not None else []).append
    return load_labelled([str(path) for path in paths], task, val_share=share, seed=seed, note=note)


# -- data sets -------------------------------------------------------------------------------------------------------


def test_a_folder_holds_the_splits_of_its_task(tmp_path: Path) -> None:
    for name in (
        "train.tsv",
        "train.more.csv.gz",
        "dev.jsonl",
        "test.tsv.zst",
        "labels.txt",
        "train.conll",
        "README.md",
    ):
        (tmp_path / name).touch()
    found = find_splits([str(tmp_path)], "classification")
    assert {split: [file.name for file in files] for split, files in found.items()} == {
        "train": ["train.more.csv.gz", "train.tsv"],
        "val": ["dev.jsonl"],
        "test": ["test.tsv.zst"],
    }
    assert [file.name for file in find_splits([str(tmp_path)], "ner")["train"]] == ["train.conll", "train.tsv"]
    path = tmp_path / "train.conll"
    refused(lambda: find_splits([str(path)], "classification"), str(path), "accepted: .tsv, .csv, .jsonl, each")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(lambda: find_splits([str(empty)], "generation"), str(empty), "no generation files", "accepted: .jsonl,")
    assert set(SUFFIXES_OF) == {"classification", "ner", "generation"}


def test_splits_that_are_there_are_taken_and_double_examples_are_counted(tmp_path: Path) -> None:
    for name, texts in (("train", "abcd"), ("val", "de"), ("test", "adefg")):
        write(tmp_path / f"{name}.tsv", "".join(["text\tlabel\n", *(f"{text}\tx\n" for text in texts)]))
    notes: list[str] = []
    found = load(tmp_path, notes=notes)
    assert {name: [example.text for example in split] for name, split in found.items()} == {
        "train": list("abcd"),
        "val": list("de"),
        "test": list("adefg"),
    }
    assert list(found) == ["train", "val", "test"]
    assert notes == [
        "1 of 2 val examples also stand in the training data",
        "2 of 5 test examples also stand in the training data",
        "2 of 5 test examples also stand in the validation data",
    ]


@pytest.mark.parametrize(
    ("first", "second", "part"),
    [
        ("text\tlabel\na\tx\n", "text\tlabel\na\t1.5\n", "has single texts, number labels where the files before have"),
        ("text\tlabel\na\tx\n", "text_a\ttext_b\tlabel\na\tb\tx\n", "has paired texts"),
    ],
)
def test_files_of_a_data_set_must_be_labelled_alike(tmp_path: Path, first: str, second: str, part: str) -> None:
    paths = [write(tmp_path / "a.tsv", first), write(tmp_path / "b.tsv", second)]
    refused(lambda: load(*paths), f"{paths[1]}:2", part)
    write(tmp_path / "train.tsv", first)
    path = write(tmp_path / "test.tsv", second)
    with pytest.raises(DataError, match="where the files before have"):
        load(tmp_path)
    splits = {"test": [path], "train": [tmp_path / "train.tsv"]}
    refused(lambda: read_labelled(splits, "classification", pytest.fail), f"{tmp_path / 'train.tsv'}:2", "has ")


@QUICK
@given(
    st.lists(st.lists(st.sampled_from("abcde"), max_size=3), min_size=2, max_size=60),
    st.sampled_from([0.1, 0.25, 0.5]),
    st.integers(0, 3),
)
def test_a_validation_part_leaves_every_label_in_train(
    tmp_path_factory: pytest.TempPathFactory, several: list[list[str]], share: float, seed: int
) -> None:
    rows = [{"text": f"t{i}", "label": classes} for i, classes in enumerate(several)]
    path = write(tmp_path_factory.mktemp("d") / "a.jsonl", rows)
    everything = read_texts(path, pytest.fail)
    once = Counter(name for example in everything for name in classes_of(example))
    free = [example for example in everything if all(once[name] > 1 for name in classes_of(example))]
    if not free:
        refused(lambda: load(path, share=share, seed=seed), f"{path}:1", "too few examples")
        return
    notes: list[str] = []
    found = load(path, share=share, seed=seed, notes=notes)
    assert sorted(found["train"] + found["val"], key=lambda example: int(example.text[1:])) == everything
    assert {name for example in found["train"] for name in classes_of(example)} == set(once)
    assert 1 <= len(found["val"]) <= max(1, round(len(several) * share))
    assert found == load(path, share=share, seed=seed)
    assert notes[0].startswith(f"no validation split: {len(found['val'])} of {len(several)} examples, drawn evenly")


@QUICK
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(10, 60), min_size=2), st.integers(0, 3))
def test_a_validation_part_has_its_share_of_every_label(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, int], seed: int
) -> None:
    rows = [{"text": f"{name}{i}", "label": name} for name, size in sizes.items() for i in range(size)]
    path = write(tmp_path_factory.mktemp("d") / "a.jsonl", rows)
    found = load(path, share=0.2, seed=seed)
    assert len(found["val"]) == round(0.2 * len(rows))
    for name, n in Counter(example.label for example in found["val"]).items():
        assert abs(n - 0.2 * sizes[name]) < 1.5


def test_the_seed_says_which_examples_are_drawn(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": i % 3} for i in range(60)])
    found = [tuple(example.text for example in load(path, seed=seed)["val"]) for seed in range(5)]
    assert len(set(found)) == 5


def test_a_validation_part_of_numbers_is_spread_over_their_range(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": i * 0.5} for i in range(100)])
    drawn = [example.label for example in load(path)["val"]]
    assert [int(label // 5) for label in drawn] == list(range(10))


def test_a_validation_part_of_sentences_has_its_share_of_entity_types(tmp_path: Path) -> None:
    text = "a\tB-X\n\n" * 40 + "b\tO\n\n" * 20 + "c\tB-X\nd\tB-Y\n\n" * 20 + "e\tB-Z\n\n"
    notes: list[str] = []
    drawn = load(write(tmp_path / "a.conll", text), task="ner", notes=notes)["val"]
    assert Counter(example.words[0] for example in drawn) == {"a": 4, "b": 2, "c": 2}
    assert notes[0] == "no validation split: 8 of 81 examples, drawn evenly over labels (seed 0), are held out"


def test_a_validation_part_of_prompts_is_drawn(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "completion": "c"} for i in range(30)])
    found = load(path, task="generation")
    assert (len(found["train"]), len(found["val"])) == (27, 3)
    path = write(tmp_path / "b.jsonl", [{"prompt": "p", "completion": "c"}])
    refused(lambda: load(path, task="generation"), f"{path}:1", "too few examples to cut a validation part from")


def test_the_key_of_a_split_is_that_of_its_files_bytes(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.tsv", "a"), write(tmp_path / "b.tsv", "b")]
    assert split_key(paths) == hashlib.sha256("".join(map(sha256_file, paths)).encode()).hexdigest()
    assert len({split_key(paths), split_key(paths[::-1]), split_key(paths[:1])}) == 3


# -- real data -------------------------------------------------------------------------------------------------------


def n_entities(examples: list[Any]) -> int:
    return sum(tag.startswith("B-") for example in examples for tag in example.tags)


def rows_of(folder: Path, task: str, **options: Any) -> dict[str, list[Any]]:
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} among the shared data")
    return read_labelled(find_splits([str(folder)], task), task, options.get("note", pytest.fail))


@pytest.mark.parametrize(
    ("name", "sentences", "entities"),
    [
        ("wnut17", (3394, 1009, 1287), (1975, 836, 1079)),
        ("uner_en_ewt", (12543, 2001, 2077), (2698 + 1434 + 2873, None, None)),
    ],
)
def test_the_shared_entities_are_read(
    shared_data: Path, name: str, sentences: tuple[int, ...], entities: tuple[int | None, ...]
) -> None:
    found = rows_of(shared_data / name, "ner")
    for split, n, wanted in zip(("train", "val", "test"), sentences, entities, strict=True):
        assert len(found[split]) == n
        assert wanted in (None, n_entities(found[split]))
    types = Counter(tag[2:] for example in found["train"] for tag in example.tags if tag[0] == "B")
    assert len(types) == (6 if name == "wnut17" else 3)
    if name == "uner_en_ewt":
        assert types == {"LOC": 2698, "ORG": 1434, "PER": 2873}


@pytest.mark.parametrize(
    ("name", "task", "rows", "n_labels"),
    [
        ("banking77", "classification", (10003, None, 3080), 77),
        ("snli_cad", "classification", (8330, 1000, 2000), 3),
        ("e2e", "generation", (42061, 547, 630), 0),
        ("scitldr", "generation", (1992, 619, 618), 0),
    ],
)
def test_the_shared_texts_are_read(
    shared_data: Path, name: str, task: str, rows: tuple[int | None, ...], n_labels: int
) -> None:
    found = rows_of(shared_data / name, task)
    assert tuple(len(found[split]) if split in found else None for split in ("train", "val", "test")) == rows
    assert len({label for example in found["train"] for label in classes_of(example)}) == n_labels
    if name == "e2e":
        assert [sum(len(example.references) for example in found[split]) for split in ("val", "test")] == [4672, 4693]
    assert all(example.where.endswith(f":{i}") for i, example in enumerate(found["test"], 1 + (name == "banking77")))


def test_the_shared_similarities_are_numbers(shared_data: Path) -> None:
    notes: list[str] = []
    found = rows_of(shared_data / "stsb", "classification", note=notes.append)
    assert [len(found[split]) for split in ("train", "val", "test")] == [5749, 1500, 1379]
    assert all(type(example.label) is float and 0 <= example.label <= 5 for example in found["train"])
    assert len(notes) == 3


@pytest.mark.parametrize(
    ("name", "task", "rows"),
    [
        ("wnut17", "ner", (3394, 1009, 1287)),
        ("uner_en_ewt", "ner", (12543, 2001, 2077)),
        ("snli_cad", "classification", (1666, 200, 400)),
        ("banking77", "classification", (2723, 0, 800)),
        ("e2e", "generation", (4000, 150, 150)),
    ],
)
def test_the_labelled_samples_are_what_their_readmes_say(name: str, task: str, rows: tuple[int, ...]) -> None:
    found = read_labelled(find_splits([f"sample:{name}"], task), task, pytest.fail)
    assert tuple(len(found.get(split, [])) for split in ("train", "val", "test")) == rows
    readme = (sample(name) / "README.md").read_text("utf-8")
    assert all(f"{n:,}" in readme for n in rows if n)
    assert "https://creativecommons.org/licenses/by" in (sample(name) / "LICENSE").read_text("utf-8")
    for path in sample(name).glob("*.gz"):
        assert f"{sha256_file(path)}  {path.name}" in readme
        assert path.read_bytes()[4:8] == bytes(4)  # no time of packing
    if name == "wnut17":
        assert [n_entities(found[split]) for split in ("train", "val", "test")] == [1975, 836, 1079]


def test_the_labelled_samples_are_taken_from_the_shared_data(shared_data: Path) -> None:
    for packed, plain in (
        ("wnut17/val.conll.gz", "wnut17/dev.conll"),
        ("uner_en_ewt/train.conll.gz", "uner_en_ewt/train.conll"),
        ("snli_cad/test.jsonl.gz", "snli_cad/original_test.jsonl"),
    ):
        folder, name = packed.split("/")
        assert gzip.decompress((sample(folder) / name).read_bytes()) == (shared_data / plain).read_bytes()
    wanted = (shared_data / "banking77/labels.txt").read_text().split()[:20]
    for split in ("train", "test"):
        whole = read_texts(shared_data / f"banking77/{split}.tsv", pytest.fail)
        part = read_texts(sample("banking77") / f"{split}.tsv.gz", pytest.fail)
        assert [(example.text, example.label) for example in part] == [
            (example.text, example.label) for example in whole if example.label in wanted
        ]
