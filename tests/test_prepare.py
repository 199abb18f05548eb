"""The tokenizer commands: train, encode, decode, inspect, and texts that come back as they went in."""

import json
import shutil
from pathlib import Path

import pytest

from nlpstack.errors import ConfigError
from nlpstack.prepare import describe_tokenizer, train_tokenizer_on
from nlpstack.tokenizer import load_tokenizer
from tests.tiny import nlpstack, pretrain, tree, write_text

ODD = {
    "empty": "",
    "one newline": "\n",
    "spaces": "   a  b \t c   ",
    "line ends": "a\r\nb\rc\n\n\nd\x0b\x0c\x85\u2028\u2029",
    "controls": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "byte-order mark": "\ufeffa\ufeff",
    "metaspace": "\u2581 \u2581\u2581a\u2581",
    "special tokens": "<s></s><unk><pad>[MASK]<0x41>",
    "combining": "e\u0301 \u0301\u0301 \u1100\u1161\u11a8",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈",
    "scripts": "中文 العربية עברית हिन्दी ไทย",
    "planes": "\U0001d11e\U000e0001\U0010ffff\uffff\ufdd0\ufffd",
    "long": "ab" * 5_000 + " " * 5_000,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Path]:
    """A tokenizer of each kind; no test changes them."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind, size in (("unigram", ["--vocab-size", 400]), ("bpe", ["--vocab-size", 400]), ("char", [])):
        words = ["tokenizer", "train", "--data", text, "--kind", kind, *size, "--out", folder / kind, "--json"]
        done = nlpstack(*words)
        found = done.json
        assert (found["out"], found["kind"]) == (str(folder / kind), kind)
        assert found["vocab_size"] == 400 or kind == "char"
        assert found["hash"] == load_tokenizer(folder / kind).hash
        assert f"tokenizer: {kind}, " in done.err
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
@pytest.mark.parametrize("written", ODD.values(), ids=ODD)
def test_a_text_comes_back_from_its_ids_byte_for_byte(written: str, kind: str, folders: dict[str, Path]) -> None:
    where = ["--tokenizer", folders[kind]]
    plain = nlpstack("tokenizer", "encode", *where, stdin=written.encode())
    as_json = nlpstack("tokenizer", "encode", *where, "--json", stdin=written.encode())
    ids = as_json.json["ids"]
    assert plain.out == " ".join(map(str, ids)) + "\n"
    assert ids == load_tokenizer(folders[kind]).encode(written)
    assert not set(ids) & set(range(7))  # no special token comes from text
    for given in (plain.out, as_json.out, json.dumps(ids)):
        assert nlpstack("tokenizer", "decode", *where, stdin=given.encode()) == (0, written, "")
    assert nlpstack("tokenizer", "decode", *where, "--json", stdin=plain.out.encode()).json == {"text": written}


@pytest.mark.parametrize(("stdin", "at"), [(b"ab\xff", 2), (b"\xc3", 0), ("é".encode() + b"\xed\xa0\x80", 2)])
def test_bytes_that_are_no_text_are_refused_with_their_place(stdin: bytes, at: int, folders: dict[str, Path]) -> None:
    done = nlpstack("tokenizer", "encode", "--tokenizer", folders["bpe"], stdin=stdin)
    assert done.fault == f"nlpstack: standard input: not UTF-8 at byte {at} (0x{stdin[at]:02x})"


def test_inspect_shows_what_a_tokenizer_holds_and_how_it_cuts(folders: dict[str, Path]) -> None:
    folder, words = folders["unigram"], "To be, or nöt"
    found = nlpstack("tokenizer", "inspect", "--tokenizer", folder, "--text", words, "--json").json
    tokenizer = load_tokenizer(folder)
    assert (found["vocab_size"], found["hash"]) == (400, tokenizer.hash)
    assert found["special_ids"] == {"pad": 0, "unk": 1, "bos": 2, "eos": 3, "cls": 4, "sep": 5, "mask": 6}
    assert found["ids"] == tokenizer.encode(words)
    assert "".join(found["pieces"]).replace("\\xc3\\xb6", "ö") == words
    assert found["bytes_per_token"] == round(len(words.encode()) / len(found["ids"]), 3)
    assert found == describe_tokenizer(folder, words)
    plain = nlpstack("tokenizer", "inspect", folder).out
    assert plain.startswith("vocab_size: 400\n")
    assert "ids" not in [line.partition(":")[0] for line in plain.split("\n")]
    assert "give the tokenizer with --tokenizer DIR" in nlpstack("tokenizer", "inspect").fault


def test_a_run_and_a_model_folder_stand_for_their_tokenizer(
    text: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "a"
    assert nlpstack(*pretrain(text, run, "--tokenizer", folders["bpe"])).code == 0
    for place in (run, run / "model", run / "model" / "tokenizer.model", folders["bpe"]):
        done = nlpstack("tokenizer", "encode", "--tokenizer", place, stdin=b"To be")
        assert done.out.split() == [str(token) for token in load_tokenizer(folders["bpe"]).encode("To be")]


def test_training_twice_gives_the_same_bytes(text: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    train_tokenizer_on([str(text)], {"kind": "unigram", "vocab_size": 400}, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(folders["unigram"])


def test_of_data_with_splits_only_the_training_split_is_read(text: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val.txt").write_text("ŵŷ" * 999)
    shutil.copy(text, tmp_path / "data" / "train.txt")
    hashes = {
        train_tokenizer_on([str(data)], {"kind": "char"}, tmp_path / "out", overwrite=True).hash
        for data in (text, tmp_path / "data")
    }
    assert len(hashes) == 1


def test_a_folder_is_replaced_only_if_it_is_a_tokenizers_and_that_is_asked_for(
    text: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(folders["bpe"], tmp_path / "tok"))
    words = ["tokenizer", "train", "--data", text, "--kind", "char", "--out"]
    before = tree(tmp_path)
    fault = nlpstack(*words, out).fault
    assert fault == f"nlpstack: {out}: exists; give another --out, or --overwrite to replace a tokenizer"
    assert tree(tmp_path) == before
    assert nlpstack(*words, out, "--overwrite").code == 0
    assert tree(out) == tree(folders["char"])

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    run = tmp_path / "runs" / "a"
    assert nlpstack(*pretrain(text, run)).code == 0
    before = tree(tmp_path)
    for place in (other, run, run / "model", text):
        assert "is not a tokenizer's folder" in nlpstack(*words, place, "--overwrite").fault
        assert "exists; give another --out" in nlpstack(*words, place).fault
    assert tree(tmp_path) == before


def test_a_tokenizer_that_cannot_be_trained_leaves_nothing(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "tok"
    (tmp_path / "empty.txt").write_text("")
    for words, fault in [
        (["--data", text, "--vocab-size", 99_999], "tokenizer.vocab_size=99999 is more than this text supports"),
        (["--data", text, "--vocab-size", 0], "tokenizer.vocab_size=0"),
        (["--data", text, "--kind", "word"], "'word' is not one of 'unigram', 'bpe', 'char'"),
        (["--data", tmp_path / "empty.txt"], "holds no text"),
        (["--data", tmp_path / "none.txt"], "no such file or folder"),
    ]:
        assert fault in nlpstack("tokenizer", "train", *words, "--out", out).fault
        assert list(tree(tmp_path)) == ["empty.txt"]
    with pytest.raises(ConfigError, match="vocab_size=99999"):
        train_tokenizer_on([str(text)], {"vocab_size": 99_999}, out)


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "none", tmp_path / "empty"):
        for command in ("encode", "decode", "inspect"):
            fault = nlpstack("tokenizer", command, "--tokenizer", place).fault
            assert fault.startswith(f"nlpstack: {place}")
