"""A tokenizer is trained once for a text and its settings, and the shards of a split belong to it."""

from pathlib import Path

import pytest

from nlpstack.data.corpus import Split, load_corpus
from nlpstack.data.readers import DataConfig
from nlpstack.samples import sample
from nlpstack.tasks import CausalLM
from nlpstack.tasks.corpus import make_tokenizer, tokenize_split
from nlpstack.tokenizer import TokenizerConfig

CONFIG = TokenizerConfig(vocab_size=400)


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, Split]:
    (tmp_path / "a.txt").write_text(sample("shakespeare").read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    return load_corpus(DataConfig(paths=[str(tmp_path / "a.txt")]), lambda _: None)


def test_a_tokenizer_is_trained_once_for_a_text_and_its_settings(splits: dict[str, Split], tmp_path: Path) -> None:
    cache, notes = tmp_path / "cache", []
    first = make_tokenizer(splits["train"], CONFIG, cache, notes.append)
    assert "trained on the train split" in notes[-1]
    assert make_tokenizer(splits["train"], CONFIG, cache, notes.append).hash == first.hash
    assert "trained before" in notes[-1]
    make_tokenizer(splits["train"], TokenizerConfig(kind="char"), cache, notes.append)
    make_tokenizer(splits["val"], TokenizerConfig(kind="char"), cache, notes.append)
    assert len(list(cache.iterdir())) == 3


def test_a_damaged_tokenizer_is_trained_again(splits: dict[str, Split], tmp_path: Path) -> None:
    first = make_tokenizer(splits["train"], CONFIG, tmp_path / "cache", lambda _: None)
    (model,) = (tmp_path / "cache").rglob("tokenizer.model")
    model.write_bytes(model.read_bytes()[:-10])
    notes: list[str] = []
    assert make_tokenizer(splits["train"], CONFIG, tmp_path / "cache", notes.append).hash == first.hash
    assert any(str(model) in note and "training it again" in note for note in notes)


def test_the_tokenizer_never_sees_the_validation_part(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b " * 900 + "\u00e9 " * 200, encoding="utf-8")
    splits = load_corpus(DataConfig(paths=[str(tmp_path / "a.txt")]), lambda _: None)
    tokenizer = make_tokenizer(splits["train"], TokenizerConfig(kind="char"), tmp_path / "cache", lambda _: None)
    assert len(tokenizer.encode("\u00e9")) == 2  # its bytes: no piece
    assert len(tokenizer.encode("a")) == 1


def test_named_splits_are_tokenized_and_said(splits: dict[str, Split], tmp_path: Path) -> None:
    notes: list[str] = []
    tokenizer = make_tokenizer(splits["train"], CONFIG, tmp_path / "cache", lambda _: None)
    layout = CausalLM(tokenizer).layout
    for name in ("val", "train"):
        shards = tokenize_split(splits[name], tokenizer, layout, tmp_path / "cache", threads=1, note=notes.append)
        text = "".join(piece.text for piece in splits[name].pieces())
        assert tokenizer.decode(shards.read(0, len(shards)).tolist()) == text
        assert shards.spec.tokenizer_hash == tokenizer.hash
        assert any(note.startswith(f"{name}: tokenized") for note in notes)
