"""A corpus is tokenized ahead, slice by slice, and the slices are trained on together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nlpstack.data.shards import INDEX, TokenShards, found_shards
from nlpstack.samples import sample
from nlpstack.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from tests.tiny import nlpstack, settings

N_FILES, CHARS = 5, 4000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of some files, two tokenizers, and the tokens of its two slices."""
    folder = tmp_path_factory.mktemp("slices")
    text = sample("shakespeare").read_text("utf-8")
    (folder / "corpus").mkdir()
    for number in range(N_FILES):
        part = text[number * CHARS : (number + 1) * CHARS]
        (folder / "corpus" / f"part-{number}.txt").write_text(part)
    for name, size in (("tokenizer", 400), ("other", 500)):
        train_tokenizer([text[:40_000]], TokenizerConfig(vocab_size=size)).save(folder / name)
    for part in ("1/2", "2/2"):
        found = tokenize(folder, "tokens", "--slice", part, "--json").json
        assert found["files"] == (3 if part == "1/2" else 2)
        assert 0.95 * found["files"] * CHARS < found["bytes"] <= found["files"] * CHARS, "all but blank lines"
    return folder


def tokenize(folder: Path, out: str, *words: object):
    asked = ["--data", folder / "corpus", "--tokenizer", folder / "tokenizer", "--documents", "paragraphs"]
    return nlpstack("data", "tokenize", *asked, "--out", folder / out, *words)


def pretrain(
    folder: Path, *words: object, tokenizer: str | None = "tokenizer", data: str = "tokens", arch: str = "gpt"
):
    given = ["--tokenizer", folder / tokenizer] if tokenizer else []
    made = settings(tokenizer__vocab_size=None, eval__max_tokens=500, eval__pseudo_tokens=20)
    return nlpstack(
        "pretrain", "--arch", arch, "--data", folder / data, *given, "--threads", 1, "--json", *made, *words
    )


def documents(shards: TokenShards) -> list[tuple[int, ...]]:
    return [tuple(shards.read(start, end).tolist()) for start, end, _ in shards.documents()]


def test_slices_hold_every_document_once_as_one_tokenization_does(place: Path) -> None:
    assert tokenize(place, "whole").code == 0
    slices, (whole,) = found_shards([str(place / "tokens")]), found_shards([str(place / "whole")])
    assert len(slices) == 2
    together, alone = TokenShards(*slices), TokenShards(whole)
    assert sorted(documents(together)) == sorted(documents(alone))
    assert (len(together), together.n_bytes) == (len(alone), alone.n_bytes)
    assert together.words.sum() == alone.words.sum()
    one = [document for folder in slices for document in documents(TokenShards(folder))]
    assert documents(together) == one, "the documents of one slice after those of another"


def test_more_slices_than_files_are_stretches_of_documents(place: Path) -> None:
    n = N_FILES + 2
    assert tokenize(place, "whole").code == 0
    (whole,) = found_shards([str(place / "whole")])
    in_turn: list[tuple[int, ...]] = []
    for number in range(1, n + 1):
        found = tokenize(place, "stretches", "--slice", f"{number}/{n}", "--json").json
        assert found["documents"] in {len(documents(TokenShards(whole))) // n + extra for extra in (0, 1)}
        in_turn += documents(TokenShards(Path(found["out"])))
    assert in_turn == documents(TokenShards(whole))
    assert len(found_shards([str(place / "stretches")])) == n


def test_a_stretch_of_documents_is_read_as_if_it_were_all(place: Path) -> None:
    slices = found_shards([str(place / "tokens")])
    whole = documents(TokenShards(*slices))
    for start, stop in ((0, 7), (7, len(whole)), (len(whole) - 1, len(whole))):
        part = TokenShards(*slices, documents=slice(start, stop))
        assert documents(part) == whole[start:stop]
        assert len(part) == sum(map(len, whole[start:stop]))
        assert part.read(len(part) - 1, len(part) + 50).tolist() == [whole[stop - 1][-1]], "nothing from beyond its end"


@pytest.mark.slow
def test_sentences_of_slices_end_where_those_of_each_do(place: Path) -> None:
    for part in ("1/2", "2/2"):
        assert tokenize(place, "sentences", "--slice", part, "--arch", "bert").code == 0
    first, second = (TokenShards(folder) for folder in found_shards([str(place / "sentences")]))
    both = TokenShards(first.folder, second.folder)
    wanted = np.concatenate((first.sentence_ends, second.sentence_ends + len(first)))
    assert both.sentence_ends.tolist() == wanted.tolist()
    cut = TokenShards(first.folder, second.folder, documents=slice(len(first.ends), None))
    assert cut.sentence_ends.tolist() == second.sentence_ends.tolist()
    result = pretrain(place, "--out", place / "bert", data="sentences", arch="bert")
    assert set(result.json["val"]) >= {"mlm_loss", "nsp_loss"}


def test_a_slice_that_was_made_before_is_taken_as_it_is(place: Path) -> None:
    before = [(path, path.stat().st_mtime_ns) for path in sorted((place / "tokens").rglob("*"))]
    again = tokenize(place, "tokens", "--slice", "2/2")
    assert "tokenized before" in again.err
    assert before == [(path, path.stat().st_mtime_ns) for path in sorted((place / "tokens").rglob("*"))]


def test_slices_are_trained_on_together_and_the_last_documents_are_scored(place: Path) -> None:
    result = pretrain(place, "--out", place / "run")
    assert result.json["steps"] == 5
    n = len(documents(TokenShards(*found_shards([str(place / "tokens")]))))
    held_out = n - int(n * 0.9 + 1e-9)
    assert f"2 folders; the last {held_out:,} of {n:,} documents are held out" in result.err
    again = pretrain(place, "--out", place / "run", "--resume")
    assert again.json["weights"] == result.json["weights"]
    tokenizer = load_tokenizer(place / "tokenizer")
    assert load_tokenizer(place / "run").hash == tokenizer.hash


def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    assert "give the tokenizer that made them" in pretrain(place, *out, tokenizer=None).fault
    assert "tokenizer_hash" in pretrain(place, *out, tokenizer="other").fault
    assert (
        "bos_id" in pretrain(place, *out, arch="bert").fault or "sentences" in pretrain(place, *out, arch="bert").fault
    )
    mixed = pretrain(place, *out, "--data", place / "corpus")
    assert "holds no tokens" in mixed.fault
    copy = tmp_path / "tokens"
    shutil.copytree(place / "tokens", copy)
    first, second = found_shards([str(copy)])
    (first / INDEX).unlink()
    assert "not whole" in pretrain(place, *out, data=str(copy)).fault
    shutil.rmtree(first)
    shard = next(second.glob("shard-*0.npy"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert "altered since it was tokenized" in pretrain(place, *out, data=str(copy)).fault
    index = json.loads((second / INDEX).read_text())
    (second / INDEX).write_text(json.dumps({**index, "spec": {"odd": 1}}))
    assert "altered" in pretrain(place, *out, data=str(copy)).fault
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["0/2", "3/2", "1/99999", "1", "a/b", "1/0"])
def test_a_slice_that_is_none_is_refused(place: Path, part: str, tmp_path: Path) -> None:
    assert f"--slice {part}" in tokenize(place, str(tmp_path / "out"), "--slice", part).fault
    assert not (tmp_path / "out").exists()
