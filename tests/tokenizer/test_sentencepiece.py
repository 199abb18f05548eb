"""What our tokenizer promises of every text: nothing lost, nothing special, the same ids however it is cut."""

import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.errors import DataError, ModelError
from nlpstack.files import new_folder
from nlpstack.tokenizer import SentencePieceTokenizer, Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer

SPECIALS = ["<pad>", "<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"]
AWKWARD = "\0\t\r\n \u00a0\u2581\u2585\u2047\ufeff\ufffd\ufffe\u0301\u200d\U0001f469\U000e0041\U0010ffff<>[]"
any_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(AWKWARD + "thesand "))
exhaustive = settings(deadline=None, derandomize=True, max_examples=200)


@given(text=any_text)
@exhaustive
def test_every_text_comes_back(tokenizer: SentencePieceTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_code_point_comes_back_in_one_text(tokenizer: SentencePieceTokenizer) -> None:
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 7)]))
    (ids,) = tokenizer.encode_batch([text], threads=2)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text", ["", " ", "  a  b  ", "\n\n", "\r\n", " \n ", "\u2581", "a\u2581 \u2581b", "\u2581" * 3000]
)
def test_white_space_comes_back(tokenizer: SentencePieceTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(ids=st.lists(st.integers(0, 290)))
@exhaustive
def test_any_ids_decode(tokenizer: SentencePieceTokenizer, ids: list[int]) -> None:
    text = tokenizer.decode(ids)
    assert text == b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")


@pytest.mark.parametrize("token", [-1, 100_000])
def test_an_id_outside_the_vocabulary_is_an_error(tokenizer: SentencePieceTokenizer, token: int) -> None:
    with pytest.raises(
        DataError, match=f"id {token} is not in the vocabulary, which ends at {tokenizer.vocab_size - 1}"
    ):
        tokenizer.decode([8, token])


def test_broken_utf8_decodes_to_replacement_characters(tokenizer: SentencePieceTokenizer) -> None:
    byte = 8
    assert tokenizer.decode([byte + 0x41, byte + 0xE2, byte + 0x42]) == "A\ufffdB"


@pytest.mark.parametrize("spelled", [*SPECIALS, "<0x41>", "<0xE2>"])
def test_specials_are_never_made_from_text(tokenizer: SentencePieceTokenizer, spelled: str) -> None:
    text = f"a {spelled}{spelled} b{spelled}"
    ids = tokenizer.encode(text)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text


def test_special_ids_are_fixed_and_decode_to_nothing(tokenizer: SentencePieceTokenizer) -> None:
    protocol: Tokenizer = tokenizer
    ids = [getattr(protocol, f"{role}_id") for role in ("pad", "unk", "bos", "eos", "cls", "sep", "mask")]
    assert ids == list(range(7))
    assert tokenizer.special_ids == frozenset(ids)
    assert tokenizer.decode([2, *tokenizer.encode("a"), 3]) == "a"


@pytest.mark.parametrize("encode", ["encode", "encode_batch"])
def test_a_lone_surrogate_is_named_with_its_place(tokenizer: SentencePieceTokenizer, encode: str) -> None:
    with pytest.raises(DataError, match=r"character 3 of the text is U\+D83D, a lone surrogate"):
        tokenizer.encode("abc\ud83d") if encode == "encode" else tokenizer.encode_batch(["abc\ud83d"], threads=1)


def test_batches_hold_the_same_ids_as_single_texts(tokenizer: SentencePieceTokenizer, corpus: str) -> None:
    texts = [corpus, "", "a\u2581b", corpus[:10], "\u2581"]
    for threads in (1, 2):
        arrays = tokenizer.encode_batch(texts, threads=threads)
        assert [array.dtype for array in arrays] == [np.int32] * len(texts)
        assert [array.tolist() for array in arrays] == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([], threads=2) == []


def test_cutting_at_line_ends_changes_no_id(tokenizer: SentencePieceTokenizer, corpus: str) -> None:
    lines = corpus.splitlines(keepends=True)
    for size in (1, 7, 100):
        parts = ["".join(lines[at : at + size]) for at in range(0, len(lines), size)]
        assert [token for part in parts for token in tokenizer.encode(part)] == tokenizer.encode(corpus)


@pytest.mark.parametrize("alphabet", ["the ", "a", "sea  ", "\u65e5a", "\n a", "\u4e00\u4e01x"])
def test_long_lines_encode_as_if_in_one_piece(tokenizer: SentencePieceTokenizer, alphabet: str, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    processor = spm.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    draw = random.Random(alphabet)
    for _ in range(20):
        text = "".join(draw.choices(alphabet, k=4100))
        assert tokenizer.encode(text) == processor.Encode(text)


def test_saved_tokenizer_is_the_same_tokenizer(tokenizer: SentencePieceTokenizer, tmp_path: Path, corpus: str) -> None:
    tokenizer.save(tmp_path / "run" / "model")
    for path in (tmp_path / "run", tmp_path / "run" / "model", tmp_path / "run" / "model" / "tokenizer.model"):
        loaded = load_tokenizer(path)
        assert (loaded.hash, loaded.kind, loaded.vocab_size) == (tokenizer.hash, tokenizer.kind, tokenizer.vocab_size)
        assert loaded.encode(corpus[:500]) == tokenizer.encode(corpus[:500])


@pytest.fixture
def folder(corpus: str, tmp_path: Path) -> Path:
    with new_folder(tmp_path / "tok") as new:
        train_tokenizer([corpus], TokenizerConfig(kind="char")).save(new)
    return tmp_path / "tok"


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere") == (
        f"{tmp_path / 'nowhere'}: is no folder; give a tokenizer, model or run folder, or a .model file"
    )
    assert f"{tmp_path / 'tokenizer.model'}: cannot be read (No such file or directory)" in refused(tmp_path)
    assert "x.model: cannot be read" in refused(tmp_path / "x.model")


def test_an_altered_file_is_named_by_the_manifest(folder: Path) -> None:
    model = folder / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:-1])
    assert "tokenizer.model" in refused(folder)
    assert "manifest.json says" in refused(folder)
    (folder / "tokenizer.json").unlink()
    model.unlink()
    assert "missing" in refused(folder)


def test_a_truncated_or_foreign_file_is_refused_without_a_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    model = folder / "tokenizer.model"
    whole = model.read_bytes()
    for size in {0, 1, 100, *range(0, len(whole), 97), len(whole) - 1}:
        model.write_bytes(whole[:size])
        assert f"{model}: " in refused(folder)
    model.write_bytes(b"not a model")
    assert "not a whole SentencePiece model" in refused(folder)


OURS = {
    "model_type": "bpe",
    "vocab_size": 330,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    **{"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3},
    "control_symbols": SPECIALS[4:],
    "user_defined_symbols": ["\n"],
}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"pad_id": -1}, "piece 0 is '[CLS]', not '<pad>'"),
        ({"byte_fallback": False}, "piece 8 is "),
        ({"control_symbols": [], "user_defined_symbols": [*SPECIALS[4:], "\n"]}, "its special tokens are not reserved"),
        ({"add_dummy_prefix": True}, "it changes the text before encoding it"),
        ({"normalization_rule_name": "nfkc"}, "it changes the text before encoding it"),
        ({"split_by_whitespace": False, "vocab_size": 1500}, "a piece runs across a space or a line end"),
        ({"model_type": "word"}, "its type is neither unigram, BPE nor char"),
    ],
)
def test_a_sentencepiece_model_of_others_is_refused(
    changes: dict[str, object], fault: str, corpus: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.model"
    with open(path, "wb") as file:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus.split("\n")), model_writer=file, minloglevel=3, **(OURS | changes)
        )
    if fault:
        message = refused(path)
        assert message.startswith(f"{path}: a SentencePiece model that is not nlpstack's ({fault}")
        assert message.endswith("train one with 'nlpstack tokenizer train'")
    else:
        load_tokenizer(path)
