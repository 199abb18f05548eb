"""Splits are cut where they should be, and a corpus is known by its text, not by how it is packed."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.data import readers
from nlpstack.data.corpus import Split, load_corpus, survey, whole_corpus
from nlpstack.data.readers import DataConfig, Piece, read_documents
from nlpstack.errors import DataError
from nlpstack.samples import sample

QUICK = settings(max_examples=40, deadline=None)  # deadlines fail on a busy machine


def load(*paths: Path, notes: list[str] | None = None, **values: object) -> dict[str, Split]:
    config = DataConfig(paths=[str(path) for path in paths], **values)  # type: ignore[arg-type]
    return load_corpus(config, (notes if notes is not None else []).append)


def write(path: Path, *texts: str) -> Path:
    """A .txt of the texts as paragraphs, or a .jsonl of them."""
    if path.suffix == ".txt":
        path.write_text("\n\n".join(texts))
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def text_of(split: Split) -> str:
    return "".join(piece.text for piece in split.pieces())


# -- cutting ---------------------------------------------------------------------------------------------------------


def test_the_validation_part_of_shakespeare_is_the_last_tenth_of_its_characters() -> None:
    path = sample("shakespeare")
    text = path.read_text(encoding="utf-8")
    splits = load(path)
    cut = int(0.9 * len(text))  # as nanoGPT cuts it
    assert text_of(splits["train"]) == text[:cut]
    assert text_of(splits["val"]) == text[cut:]


@QUICK
@given(st.integers(2, 400), st.sampled_from([0.1, 0.25, 0.5, 0.9]), st.integers(4, 30))
def test_a_single_document_is_cut_by_characters(
    tmp_path_factory: pytest.TempPathFactory, n: int, share: float, size: int
) -> None:
    text = ("日本 ab\n" * n)[:n]
    path = tmp_path_factory.mktemp("d") / "a.txt"
    path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE_BYTES", size)
        splits = load(path, val_share=share)
        pieces = {name: list(split.pieces()) for name, split in splits.items()}
    cut = min(max(int(round(1 - share, 6) * n), 1), n - 1)  # both parts hold something
    assert "".join(piece.text for piece in pieces["train"]) == text[:cut]
    assert "".join(piece.text for piece in pieces["val"]) == text[cut:]
    for parts in pieces.values():
        assert [piece.last for piece in parts] == [False] * (len(parts) - 1) + [True]


@QUICK
@given(st.integers(2, 60), st.sampled_from([0.1, 0.3]))
def test_several_documents_are_cut_between_documents(
    tmp_path_factory: pytest.TempPathFactory, n: int, share: float
) -> None:
    texts = [f"text {number}" for number in range(n)]
    splits = load(write(tmp_path_factory.mktemp("d") / "a.jsonl", *texts), val_share=share)
    cut = max(int(round(1 - share, 6) * n), 1)
    assert [piece.text for piece in splits["train"].pieces()] == texts[:cut]
    assert [piece.text for piece in splits["val"].pieces()] == texts[cut:]


def test_paragraphs_are_documents_where_that_is_asked(tmp_path: Path) -> None:
    notes: list[str] = []
    path = write(tmp_path / "a.txt", *"abcdefghij")
    splits = load(path, documents="paragraphs", notes=notes)
    assert [piece.text for piece in splits["val"].pieces()] == ["j"]
    assert notes == ["no validation split: the last 1 of 10 documents are held out for it"]


def test_a_validation_split_that_is_there_is_not_cut(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        write(tmp_path / f"{name}.txt", name)
    notes: list[str] = []
    splits = load(tmp_path, notes=notes)
    assert {name: text_of(split) for name, split in splits.items()} == {
        "train": "train",
        "val": "valid",
        "test": "test",
    }
    assert notes == []


def test_the_whole_corpus_is_not_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "abc")
    splits = whole_corpus(DataConfig(paths=[str(path)]), lambda _: None)
    assert {name: text_of(split) for name, split in splits.items()} == {"all": "abc"}


def test_text_that_is_none_or_too_short_is_refused(tmp_path: Path) -> None:
    for name, text in (("empty.txt", ""), ("short.txt", "a"), ("empty.jsonl", '{"text": ""}\n')):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=f"{name}: (holds no text|too short)"):
            load(tmp_path / name)


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_share_that_leaves_a_part_empty_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="above 0 and below 1"):
        DataConfig(val_share=share)


# -- duplicates ------------------------------------------------------------------------------------------------------


def test_duplicates_between_splits_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "a", "b", "c", "a")
    write(tmp_path / "val.jsonl", "a", "a", "x", "b ")
    write(tmp_path / "test.jsonl", "c", "x", "y")
    notes: list[str] = []
    load(tmp_path, notes=notes)
    assert notes == [
        "2 of 4 val documents also stand, word for word, in the training data",
        "1 of 3 test documents also stand, word for word, in the training data",
        "1 of 3 test documents also stand, word for word, in the validation data",
    ]


def test_duplicates_are_counted_between_parts_that_were_cut(tmp_path: Path) -> None:
    notes: list[str] = []
    load(write(tmp_path / "a.jsonl", *"abcdefghia"), notes=notes)
    assert "1 of 1 val documents also stand, word for word, in the training data" in notes


# -- identity --------------------------------------------------------------------------------------------------------


def survey_of(*files: Path, mode: str = "files") -> tuple[object, ...]:
    found = survey(read_documents(files, mode, lambda _: None))
    return len(found.digests), found.n_chars, found.sha256, found.digests.tolist()


def test_a_survey_counts_documents_and_characters(tmp_path: Path) -> None:
    assert survey_of(write(tmp_path / "a.jsonl", "aé", "b"))[:2] == (2, 3)


def test_packing_and_piece_size_do_not_change_the_survey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "日本 word\n" * 50 + "x" * 100
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    write(tmp_path / "a.jsonl", text)
    wanted = survey_of(tmp_path / "a.txt")
    for size in (1 << 20, 64, 7):
        monkeypatch.setattr(readers, "PIECE_BYTES", size)
        for name in ("a.txt", "a.txt.gz", "a.jsonl"):
            assert survey_of(tmp_path / name) == wanted


def test_where_documents_end_changes_the_survey() -> None:
    texts = ["ab", "c"], ["a", "bc"], ["abc"], ["a", "b", "c"]
    hashes = {survey(Piece(text, last=True) for text in documents).sha256 for documents in texts}
    assert len(hashes) == len(texts)
    split = [Piece("a", last=False), Piece("b", last=True), Piece("c", last=True)]
    whole = [Piece("ab", last=True), Piece("c", last=True)]
    assert survey(iter(split)).sha256 == survey(iter(whole)).sha256
    assert np.array_equal(survey(iter(split)).digests, survey(iter(whole)).digests)


def test_parts_of_one_text_have_keys_of_their_own(tmp_path: Path) -> None:
    splits = load(write(tmp_path / "a.txt", "some text"))
    other = load(write(tmp_path / "b.txt", "some text"), val_share=0.5)
    keys = {split.key for split in (*splits.values(), *other.values())}
    assert len(keys) == 4
    assert load(write(tmp_path / "c.txt", "some text"))["train"].key == splits["train"].key
