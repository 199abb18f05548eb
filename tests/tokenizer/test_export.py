"""tokenizer.json gives the ids of our own encoder in Hugging Face's libraries, ties included."""

import json
import random
from pathlib import Path

import pytest

from nlpstack.errors import ConfigError
from nlpstack.tokenizer import SentencePieceTokenizer, TokenizerConfig, train_tokenizer
from nlpstack.tokenizer.base import ROLES
from nlpstack.tokenizer.sentencepiece import SPECIALS, _merges

tokenizers = pytest.importorskip("tokenizers")


def exported(tokenizer: SentencePieceTokenizer, folder: Path):
    tokenizer.save(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def assert_same_ids(tokenizer: SentencePieceTokenizer, other, texts: list[str]) -> None:
    for text, encoding in zip(texts, other.encode_batch(texts), strict=True):
        assert encoding.ids == tokenizer.encode(text), repr(text)
        assert other.decode(encoding.ids, skip_special_tokens=False) == text


def some_text(draw: random.Random, text: str) -> str:
    """Snippets of a text in a row: known words, broken words and unlikely neighbours."""
    starts = [draw.randrange(len(text)) for _ in range(draw.randint(1, 30))]
    return "".join(text[start : start + draw.randint(1, 12)] for start in starts)


def test_words_and_odd_characters_get_the_same_ids(
    tokenizer: SentencePieceTokenizer, corpus: str, tmp_path: Path
) -> None:
    draw = random.Random(0)
    odd = (
        "\0\t\r\n \u00a0\u2585\u2047\ufeff\u0301\U0001f469\u200d\U0010ffff>[]"  # no "<", which might come to spell <s>
    )
    texts = [corpus, corpus.replace("\n", " "), "", " ", "  a  ", "\n\n a\n", "e" * 9000, odd]
    texts += [some_text(draw, corpus) for _ in range(600)]
    texts += ["".join(draw.choices(odd + "the sea", k=40)) for _ in range(300)]
    assert_same_ids(tokenizer, exported(tokenizer, tmp_path), texts)


def train_any_size(text: str, kind: str, size: int) -> SentencePieceTokenizer:
    """Trained with the size nearest to `size` that the text supports."""
    try:
        return train_tokenizer([text], TokenizerConfig(kind=kind, vocab_size=size))  # type: ignore[arg-type]
    except ConfigError as error:
        words = str(error).replace(":", " ").split(" at ")[1].split()
        return train_tokenizer([text], TokenizerConfig(kind=kind, vocab_size=int(words[1])))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("alphabet", ["a", "ab", "ab ", "abc", "a\n ", "\u00e9a ", "\u65e5\u672c ", "abcdefgh "])
def test_ties_break_alike_on_tiny_alphabets(alphabet: str, kind: str, tmp_path: Path) -> None:
    draw = random.Random(alphabet)
    for trial in range(3):
        motifs = ["".join(draw.choices(alphabet, k=draw.randint(1, 6))) for _ in range(6)]
        source = motifs if trial % 2 else list(alphabet)
        text = "\n".join("".join(draw.choices(source, k=draw.randint(1, 60))) for _ in range(60))
        tokenizer = train_any_size(text, kind, draw.choice([280, 330, 600]))
        texts = ["".join(draw.choices([*alphabet, *motifs], k=draw.choice([3, 8, 20, 60, 200]))) for _ in range(80)]
        assert_same_ids(tokenizer, exported(tokenizer, tmp_path / str(trial)), texts)


def test_overlapping_pairs_of_one_piece_rank_from_the_left() -> None:
    assert _merges("aba", {"a", "b", "ab", "ba", "aba"}) == [("ab", "a"), ("a", "ba")]
    assert _merges("aab", {"a", "b", "aa", "ab", "aab"}) == [("a", "ab"), ("aa", "b")]
    assert _merges("a", {"a"}) == []


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
@pytest.mark.parametrize("name", ["tinyshakespeare/input.txt", "wikitext2/valid.txt"])
def test_real_text_gets_the_same_ids(name: str, kind: str, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    text = path.read_text(encoding="utf-8")[:200_000].replace("<unk>", "<unk")  # a special token's spelling
    size = None if kind == "char" else 1500
    tokenizer = train_tokenizer([text[:120_000]], TokenizerConfig(kind=kind, vocab_size=size))  # type: ignore[arg-type]
    draw = random.Random(1)
    texts = [text, *(some_text(draw, text) for _ in range(500))]
    assert_same_ids(tokenizer, exported(tokenizer, tmp_path), texts)


def test_the_exported_special_tokens_are_those_of_the_model(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    added = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    assert [(token["id"], token["content"]) for token in added] == list(enumerate(SPECIALS))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert [config[f"{role}_token"] for role in ROLES] == list(SPECIALS)


CONFIGS = {
    "gpt2": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "bos_token_id": 2, "eos_token_id": 3},
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "bert": {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
}


@pytest.mark.parametrize("family", CONFIGS)
def test_transformers_opens_a_model_folder_with_the_same_ids(
    tokenizer: SentencePieceTokenizer, family: str, corpus: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, max_length=256)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS[family], "vocab_size": tokenizer.vocab_size}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (corpus[:900], " don't , n't .  \n\n\t\u65e5\u672c \u2047 ", ""):
        ids = theirs(text)["input_ids"]
        assert ids == tokenizer.encode(text)
        assert theirs.decode(ids) == text
    roles = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
    assert [getattr(theirs, f"{role}_token_id") for role in roles] == list(range(7))
    assert theirs.decode([2, *theirs("a")["input_ids"], 3], skip_special_tokens=True) == "a"
    assert (theirs.model_max_length, len(theirs)) == (256, tokenizer.vocab_size)
