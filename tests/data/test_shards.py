"""Shards hold the tokens of the whole text, are reused while they are whole, and go on where a killed run left them."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.data import shards as module
from nlpstack.data.corpus import load_corpus, split_sentences
from nlpstack.data.readers import DataConfig, Piece
from nlpstack.data.shards import ShardSpec, TokenShards, load_or_tokenize
from nlpstack.samples import sample
from nlpstack.tasks.base import DocumentLayout
from nlpstack.tasks.corpus import tokenize_split
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer
from tests.handmade import cut, encode

QUICK = settings(max_examples=40, deadline=None)  # deadlines fail on a busy machine

SPEC = ShardSpec(split_key="key", tokenizer_hash="tok", vocab_size=2000, bos_id=1, eos_id=2)
CUT = replace(SPEC, sentences="full stops")
TEXTS = [f"document {number} of some words." + " and. more" * (number % 7) for number in range(30)]


class Killed(Exception):
    """What ends a run on the way."""


def pieces(texts: Sequence[str], size: int = 8) -> list[Piece]:
    """Each text cut into pieces of `size` characters."""
    cuts = [[text[at : at + size] for at in range(0, len(text), size)] for text in texts]
    return [Piece(part, last=n == len(parts) - 1) for parts in cuts for n, part in enumerate(parts)]


def tokenize(
    cache: Path,
    given: Iterable[Piece],
    spec: ShardSpec = SPEC,
    encoder: Callable[[list[str]], list[np.ndarray]] = encode,
    notes: list[str] | None = None,
) -> TokenShards:
    rows = list(given)
    say = (notes if notes is not None else []).append
    return load_or_tokenize(lambda: rows, encoder, spec, cache, say, segment=cut if spec.sentences else None)


def never(texts: list[str]) -> list[np.ndarray]:
    raise AssertionError("nothing was to be encoded")


def expected(texts: Sequence[str], spec: ShardSpec = SPEC) -> list[int]:
    found: list[int] = []
    for text in texts:
        found += [spec.bos_id] if spec.bos_id is not None else []
        found += encode([text])[0].tolist()
        found += [spec.eos_id] if spec.eos_id is not None else []
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of some 100 tokens, groups of some 30 characters."""
    monkeypatch.setattr(module, "SHARD_TOKENS", 100)
    monkeypatch.setattr(module, "GROUP_BYTES", 30)


# -- what they hold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [(1, 2), (None, 2), (1, None), (None, None), (0, 0)])
@pytest.mark.usefixtures("small")
def test_shards_hold_each_document_between_its_special_tokens(
    tmp_path: Path, special: tuple[int | None, int | None]
) -> None:
    spec = replace(SPEC, bos_id=special[0], eos_id=special[1])
    found = tokenize(tmp_path, pieces(TEXTS), spec)
    assert len(found.index["shards"]) > 3
    assert found.read(0, len(found)).tolist() == expected(TEXTS, spec)
    assert found.n_bytes == sum(len(text.encode()) for text in TEXTS)
    parts = [found.read(start, stop).tolist() for start, stop, _ in found.documents()]
    assert parts == [expected([text], spec) for text in TEXTS]


@pytest.mark.usefixtures("small")
def test_any_stretch_is_read_across_shards(tmp_path: Path) -> None:
    found, wanted = tokenize(tmp_path, pieces(TEXTS)), expected(TEXTS)
    borders = np.cumsum([entry["n_tokens"] for entry in found.index["shards"]]).tolist()
    places = sorted({0, 1, *(at + d for at in borders[:3] for d in (-1, 0, 1)), len(wanted) - 1, len(wanted)})
    for start in places:
        for stop in places:
            if start <= stop:
                row = found.read(start, stop)
                assert row.dtype == np.int64
                assert row.tolist() == wanted[start:stop]


def test_ids_take_the_smallest_type_that_holds_them(tmp_path: Path) -> None:
    for vocab_size, dtype in ((1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)):
        spec = replace(SPEC, vocab_size=vocab_size, tokenizer_hash=str(vocab_size))
        top = np.array([vocab_size - 1], dtype=np.int32)
        found = tokenize(tmp_path, [Piece("a", last=True)], spec, lambda texts, top=top: [top for _ in texts])
        (path,) = found.folder.glob("shard-?????.npy")
        assert np.load(path).dtype == dtype
        assert found.read(1, 2).tolist() == [vocab_size - 1]


@pytest.mark.parametrize("language", ["", "en"])
def test_a_split_is_tokenized_as_its_whole_text_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    text = sample("shakespeare").read_text(encoding="utf-8")[:20_000]
    tokenizer = train_tokenizer([text], TokenizerConfig(vocab_size=400))
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr("nlpstack.data.readers.PIECE_BYTES", 100)
    split = load_corpus(DataConfig(paths=[str(tmp_path / "a.txt")]), lambda _: None)["train"]
    assert len(list(split.pieces())) > 10
    layout = DocumentLayout(bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, language=language)
    found = tokenize_split(split, tokenizer, layout, tmp_path / "cache", threads=2, note=lambda _: None)
    whole = tokenizer.encode(text[: int(0.9 * len(text))])
    assert found.read(0, len(found)).tolist() == [tokenizer.bos_id, *whole, tokenizer.eos_id]
    assert (len(found.sentence_ends) > 100) == bool(language)


@QUICK
@given(st.lists(st.text("ab \n\t\x0b\u3000é", min_size=1), min_size=1, max_size=5), st.integers(1, 6))
def test_words_are_counted_as_python_splits_the_whole_document(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int
) -> None:
    found = tokenize(tmp_path_factory.mktemp("d"), pieces(texts, size))
    assert [words for _, _, words in found.documents()] == [len(text.split()) for text in texts]


# -- sentences -------------------------------------------------------------------------------------------------------


def sentence_ends(texts: Sequence[str], spec: ShardSpec, size: int = 8) -> list[int]:
    """Ends by a plain count; a piece's end ends a sentence, BOS and EOS belong to the first and last one."""
    ends: list[int] = []
    at = 0
    for text in texts:
        at += spec.bos_id is not None
        for part in pieces([text], size):
            for sentence in cut(part.text):
                at += len(sentence)
                ends.append(at)
        if spec.eos_id is not None:
            at += 1
            ends[-1] = at
    return ends


@pytest.mark.parametrize("special", [(1, 2), (None, 2), (1, None), (None, None)])
@pytest.mark.parametrize("size", [8, 1000])
@pytest.mark.usefixtures("small")
def test_sentence_ends_are_those_of_a_plain_count(
    tmp_path: Path, special: tuple[int | None, int | None], size: int
) -> None:
    spec = replace(CUT, bos_id=special[0], eos_id=special[1])
    found = tokenize(tmp_path, pieces(TEXTS, size), spec)
    assert len(found.index["shards"]) > 3
    assert found.sentence_ends.dtype == np.int64
    assert found.sentence_ends.tolist() == sentence_ends(TEXTS, spec, size)
    assert set(found.ends.tolist()) <= set(found.sentence_ends.tolist())


def test_tokens_are_the_same_with_and_without_sentences(tmp_path: Path) -> None:
    found, plain = tokenize(tmp_path, pieces(TEXTS), CUT), tokenize(tmp_path, pieces(TEXTS))
    assert found.read(0, len(found)).tolist() == plain.read(0, len(plain)).tolist()
    assert (found.ends.tolist(), found.words.tolist()) == (plain.ends.tolist(), plain.words.tolist())
    assert len(plain.sentence_ends) == 0


def test_a_sentence_without_tokens_adds_no_end(tmp_path: Path) -> None:
    def deaf(texts: list[str]) -> list[np.ndarray]:
        return encode(["" if "b" in text else text for text in texts])

    for special, wanted in (
        ((None, None), [2, 5]),
        ((None, 2), [2, 6, 7]),
        ((1, None), [3, 6, 7]),
        ((1, 2), [3, 7, 9]),
    ):
        spec = replace(CUT, bos_id=special[0], eos_id=special[1])
        found = tokenize(tmp_path, [Piece("a.bb.cc.b.", last=True), Piece("b.", last=True)], spec, deaf)
        assert found.sentence_ends.tolist() == wanted


@pytest.mark.parametrize("source", ["wikitext2", "shakespeare"])
def test_real_text_gets_the_same_tokens_sentence_by_sentence(source: str, request: pytest.FixtureRequest) -> None:
    path = sample("shakespeare")
    if source == "wikitext2":
        path = request.getfixturevalue("shared_data") / "wikitext2" / "valid.txt"
    text = path.read_text(encoding="utf-8")[:300_000]
    tokenizer = train_tokenizer([text[:100_000]], TokenizerConfig(vocab_size=2000, kind="bpe"))
    sentences = split_sentences(text, "en")
    assert len(sentences) > 1500
    parts = np.concatenate(tokenizer.encode_batch(sentences, threads=2))
    assert parts.tolist() == tokenizer.encode(text)


# -- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_whole_shards_are_reused_without_encoding(tmp_path: Path) -> None:
    first = tokenize(tmp_path, pieces(TEXTS))
    notes: list[str] = []
    again = tokenize(tmp_path, pieces(TEXTS), encoder=never, notes=notes)
    assert again.read(0, len(again)).tolist() == first.read(0, len(first)).tolist()
    assert notes[0].startswith("tokenized before")


def test_another_text_or_tokenizer_has_shards_of_its_own(tmp_path: Path) -> None:
    for spec in (SPEC, replace(SPEC, split_key="other"), replace(SPEC, tokenizer_hash="other")):
        tokenize(tmp_path, pieces(TEXTS), spec)
    assert len(list(tmp_path.iterdir())) == 3


def test_shards_of_one_text_for_gpt_and_bert_stand_side_by_side(tmp_path: Path) -> None:
    specs = [
        SPEC,
        replace(SPEC, bos_id=None),
        replace(SPEC, bos_id=None, eos_id=None),
        CUT,
        replace(CUT, sentences="b"),
    ]
    for spec in specs:
        tokenize(tmp_path, pieces(TEXTS), spec)
    for spec in specs:
        again = tokenize(tmp_path, pieces(TEXTS), spec, encoder=never)
        assert again.spec == spec
        assert again.read(0, len(again)).tolist() == expected(TEXTS, spec)


def test_shards_of_equal_name_made_for_another_spec_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardSpec, "key", "same")
    tokenize(tmp_path, pieces(TEXTS))
    other = replace(SPEC, bos_id=None)
    found = tokenize(tmp_path, pieces(TEXTS), other)
    assert found.read(0, len(found)).tolist() == expected(TEXTS, other)


def damage_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["shard-00001.npy", "shard-00000.docs.npy", "shard-00001.sents.npy", "index.json"])
@pytest.mark.parametrize("harm", ["altered", "cut short", "removed", "emptied"])
@pytest.mark.usefixtures("small")
def test_damaged_shards_are_made_again(tmp_path: Path, name: str, harm: str) -> None:
    first = tokenize(tmp_path, pieces(TEXTS), CUT)
    before, path = contents(first.folder), first.folder / name
    if harm == "altered":
        path.write_text("[]") if name == "index.json" else damage_bytes(path)
    elif harm == "cut short":
        path.write_bytes(path.read_bytes()[:-40])
    elif harm == "removed":
        path.unlink()
    else:
        path.write_bytes(b"")
    again = tokenize(tmp_path, pieces(TEXTS), CUT)
    assert contents(again.folder) == before


# -- a killed run ----------------------------------------------------------------------------------------------------


def killed_after(n_groups: int) -> Callable[[list[str]], list[np.ndarray]]:
    left = n_groups

    def encoder(texts: list[str]) -> list[np.ndarray]:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        return encode(texts)

    return encoder


@pytest.mark.parametrize("n_groups", [0, 1, 7, 8, 20])
@pytest.mark.parametrize("spec", [SPEC, CUT])
@pytest.mark.usefixtures("small")
def test_a_killed_run_goes_on_and_leaves_the_same_files(tmp_path: Path, n_groups: int, spec: ShardSpec) -> None:
    whole = contents(tokenize(tmp_path / "whole", pieces(TEXTS), spec).folder)
    with pytest.raises(Killed):
        tokenize(tmp_path / "killed", pieces(TEXTS), spec, encoder=killed_after(n_groups))
    encoded: list[str] = []
    notes: list[str] = []

    def counting(texts: list[str]) -> list[np.ndarray]:
        encoded.extend(texts)
        return encode(texts)

    found = tokenize(tmp_path / "killed", pieces(TEXTS), spec, encoder=counting, notes=notes)
    assert contents(found.folder) == whole
    if n_groups == 20:  # what was done is not done again
        assert len(encoded) < len(pieces(TEXTS))
        assert "goes on after" in notes[0]


@pytest.mark.parametrize("harm", ["{", "[]", "{}", '{"spec": 3}'])
@pytest.mark.usefixtures("small")
def test_what_a_killed_run_left_damaged_is_made_again(tmp_path: Path, harm: str) -> None:
    whole = contents(tokenize(tmp_path / "whole", pieces(TEXTS)).folder)
    with pytest.raises(Killed):
        tokenize(tmp_path / "killed", pieces(TEXTS), encoder=killed_after(25))
    (folder,) = (tmp_path / "killed").iterdir()
    assert (folder / "shard-00002.npy").exists()
    (folder / "shard-00001.json").write_text(harm)
    assert contents(tokenize(tmp_path / "killed", pieces(TEXTS)).folder) == whole


@pytest.mark.usefixtures("small")
def test_a_document_that_is_cut_by_the_kill_is_still_one(tmp_path: Path) -> None:
    text = "word and " * 100
    with pytest.raises(Killed):
        tokenize(tmp_path, pieces([text], 7), encoder=killed_after(15))
    found = tokenize(tmp_path, pieces([text], 7))
    assert found.read(0, len(found)).tolist() == expected([text])
    assert list(found.documents()) == [(0, len(text) + 2, 200)]


@pytest.mark.usefixtures("small")
def test_a_second_writer_never_writes_into_shards_that_are_being_read(tmp_path: Path) -> None:
    first = tokenize(tmp_path, pieces(TEXTS))
    for path in first.folder.glob("*.json"):  # as it is for a run that began before the first was done
        path.unlink()
    before = {path.name: path.stat().st_ino for path in first.folder.glob("shard-?????.npy")}
    tokenize(tmp_path, pieces(TEXTS))
    after = {path.name: path.stat().st_ino for path in first.folder.glob("shard-?????.npy")}
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)  # another file under the name; the old one is mapped
    assert first.read(0, len(first)).tolist() == expected(TEXTS)


def test_what_killed_writers_left_is_deleted(tmp_path: Path) -> None:
    folder = tokenize(tmp_path, pieces(TEXTS)).folder
    (folder / "index.json").unlink()
    for name in (".shard-00000.tmp-1a.npy", ".shard-00000.docs.npy.tmp-12", ".shard-00000.json.tmp-12"):
        (folder / name).touch()
    tokenize(tmp_path, pieces(TEXTS))
    assert not list(folder.glob(".*"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damaged", [False, True], ids=["new", "damaged before"])
def test_another_writer_takes_nothing_away_whenever_it_comes(
    damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another makes the same shards just before each of the names that the first gives to a file of its own."""
    rows, replace_file, done = pieces(TEXTS), os.replace, 0
    for moment in count():
        cache, names = tmp_path / str(moment), 0
        if damaged:
            broken = tokenize(cache, rows).folder / "shard-00001.npy"
            broken.write_bytes(broken.read_bytes()[:-1] + b"x")

        def replacing(old: Path, new: Path, moment: int = moment, cache: Path = cache) -> None:
            nonlocal names
            names += 1
            if names == moment + 1:
                with monkeypatch.context() as other:
                    other.setattr(os, "getpid", lambda: 1)
                    tokenize(cache, rows)
            replace_file(old, new)

        with monkeypatch.context() as first:
            first.setattr(os, "replace", replacing)
            found = tokenize(cache, rows)
        assert found.read(0, len(found)).tolist() == expected(TEXTS)
        assert not list(cache.rglob(".*"))
        done += names > moment
        if names <= moment:
            break
    assert done > 9  # three files of each of several shards, and the index


def test_an_error_on_the_way_leaves_no_unfinished_shard(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        tokenize(tmp_path, pieces(TEXTS), encoder=killed_after(0))
    assert not list(tmp_path.rglob("*.npy"))


def test_the_index_says_what_the_shards_hold(tmp_path: Path) -> None:
    found = tokenize(tmp_path, pieces(["ab cd"]))
    index = json.loads((found.folder / "index.json").read_text())
    assert index["n_tokens"] == 7
    assert index["n_bytes"] == 5
    assert index["spec"]["tokenizer_hash"] == "tok"
