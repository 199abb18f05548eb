"""What training promises: the same bytes each time, bounded memory, and a line for all that it had to cut."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from nlpstack.errors import ConfigError, DataError
from nlpstack.tokenizer import SentencePieceTokenizer, TokenizerConfig, train_tokenizer
from nlpstack.tokenizer.training import sample_text

N_FIXED = 264


def pieces(tokenizer: SentencePieceTokenizer) -> list[str]:
    return [tokenizer.token_bytes(token).decode() for token in range(N_FIXED, tokenizer.vocab_size)]


def train(text: str, **options: object) -> tuple[SentencePieceTokenizer, list[str]]:
    lines: list[str] = []
    return train_tokenizer([text], TokenizerConfig(**options), report=lines.append), lines  # type: ignore[arg-type]


def test_vocabulary_size_defaults_to_8192_and_for_characters_to_all() -> None:
    assert TokenizerConfig().vocab_size == TokenizerConfig(kind="bpe").vocab_size == 8192
    assert TokenizerConfig(kind="char").vocab_size is None
    with pytest.raises(ValidationError):
        TokenizerConfig(kind="word")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
def test_training_twice_gives_the_same_bytes(kind: str, corpus: str, tmp_path: Path) -> None:
    size = None if kind == "char" else 330
    first, second = (train(corpus, kind=kind, vocab_size=size)[0] for _ in range(2))
    code = (
        "import sys; from nlpstack.tokenizer import *; "
        f"t = train_tokenizer([sys.stdin.read()], TokenizerConfig(kind={kind!r}, vocab_size={size})); print(t.hash)"
    )
    third = subprocess.run([sys.executable, "-c", code], input=corpus, capture_output=True, text=True, check=True)
    assert first.hash == second.hash == third.stdout.strip()
    assert third.stderr == ""
    for number, tokenizer in enumerate((first, second)):
        tokenizer.save(tmp_path / str(number))
    for file in (tmp_path / "0").iterdir():
        assert file.read_bytes() == (tmp_path / "1" / file.name).read_bytes()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_sizes_that_errors_name_are_the_limits(kind: str, corpus: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size=90000 is more than this text supports; at most (\d+) ") as large:
        train(corpus, kind=kind, vocab_size=90_000)
    with pytest.raises(ConfigError, match=r"vocab_size=270 is too small for this text; at least (\d+): ") as small:
        train(corpus, kind=kind, vocab_size=270)
    most, least = (int(str(error.value).split(word)[1].split()[0].strip(":")) for error, word in
                   ((large, "at most"), (small, "at least")))  # fmt: skip
    for size in (most, least):
        assert train(corpus, kind=kind, vocab_size=size)[0].vocab_size == size
    with pytest.raises(ConfigError, match=f"at least {least}"):
        train(corpus, kind=kind, vocab_size=least - 1)
    with pytest.raises(ConfigError, match=f"at least {least}"):
        train(corpus, kind=kind, vocab_size=5)
    assert capfd.readouterr() == ("", "")


def test_character_vocabularies_have_limits_too() -> None:
    with pytest.raises(ConfigError, match="vocab_size=400 is more than this text supports; at most 268 "):
        train("abc abc", kind="char", vocab_size=400)
    with pytest.raises(ConfigError, match="vocab_size=264 is too small for this text; at least 265: "):
        train("abc abc", kind="char", vocab_size=264)
    with pytest.raises(ConfigError, match="vocab_size=264 is too small for this text; at least 265: "):
        train(" ", kind="bpe", vocab_size=264)


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_is_an_error(kind: str, texts: list[str]) -> None:
    with pytest.raises(DataError, match="there is no text to train a tokenizer on"):
        train_tokenizer(texts, TokenizerConfig(kind=kind))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["unigram", "char"])
def test_a_lone_surrogate_in_the_corpus_is_an_error(kind: str) -> None:
    with pytest.raises(DataError, match=r"character 2 of the text is U\+DC80"):
        train("ab\udc80", kind=kind)


def test_a_text_without_spaces_still_has_the_space() -> None:
    for kind, size in (("unigram", 270), ("bpe", 270), ("char", None)):
        tokenizer, _ = train("abcabdabe" * 200, kind=kind, vocab_size=size)
        assert len(tokenizer.encode(" ")) == 1
        assert tokenizer.decode(tokenizer.encode(" a  b ")) == " a  b "


def test_characters_are_those_of_the_whole_corpus_by_code_point() -> None:
    tokenizer, lines = train("hello\n\u65e5\u672c world", kind="char", max_train_bytes=1024)
    assert pieces(tokenizer) == [*"dehlorw", " ", *"\u65e5\u672c"]  # SentencePiece's space is U+2581
    assert lines == []


def test_a_cut_character_vocabulary_keeps_the_most_frequent_and_says_so() -> None:
    tokenizer, lines = train("aaaabbbccd", kind="char", vocab_size=N_FIXED + 3)
    assert pieces(tokenizer) == ["a", "b", " "]
    assert lines == ["tokenizer: the 2 rarest characters, 3 in all, are encoded as bytes (tokenizer.vocab_size=267)"]


def test_reserved_characters_are_cut_out_and_counted(corpus: str) -> None:
    text = corpus.replace("hill", "\u2585hi\u2581ll\0\t").replace("\n", "\r\n")
    for kind, size in (("bpe", 400), ("unigram", 400), ("char", None)):
        tokenizer, lines = train(text, kind=kind, vocab_size=size)
        count = sum(map(text.count, "\0\t\r\u2581\u2585"))
        assert lines == [
            f"tokenizer: {count:,} characters that SentencePiece reserves "
            "(U+0000, U+0009, U+000D, U+2581, U+2585) get no piece and are encoded as bytes"
        ]
        assert not set("\0\t\r\u2581\u2585") & set("".join(pieces(tokenizer)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_spelled_special_tokens_are_learned_as_text_and_counted(corpus: str) -> None:
    text = corpus.replace("the", "<unk> ").replace("ship", "<0x41>")
    tokenizer, lines = train(text, kind="bpe", vocab_size=500)
    count = text.count("<unk>") + text.count("<0x41>")
    assert lines == [
        f"tokenizer: {count:,} spellings of special tokens or byte pieces in the text are learned as plain text"
    ]
    assert {"unk", "<", ">"} <= set(pieces(tokenizer))
    assert "<unk>" not in pieces(tokenizer)


@pytest.mark.parametrize("mark", ["", " "])
def test_long_lines_are_learned_whole_and_counted(corpus: str, mark: str) -> None:
    text = corpus.replace("\n", " ") + "\n" + mark.join(["\u00e9\u00e8"] * 3000)
    tokenizer, lines = train(text, kind="bpe", vocab_size=500)
    parted, _ = train(text.replace(" ", "\n "), kind="bpe", vocab_size=500)
    assert lines == ["tokenizer: 2 lines over 4,192 bytes were cut for training, at a space where there is one"]
    if mark:
        assert pieces(tokenizer) == pieces(parted)
    assert any("\u00e9\u00e8" in piece for piece in pieces(tokenizer))


def test_rare_characters_are_counted(corpus: str) -> None:
    tokenizer, lines = train(corpus + "\u4e00\u4e01", kind="unigram", vocab_size=400, character_coverage=0.999)
    assert "\u4e00" not in pieces(tokenizer)
    assert lines[-1].endswith(
        "rare characters have no piece and are encoded as bytes (tokenizer.character_coverage=0.999)"
    )


def numbered(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"{number:09d}\n" * 100


def test_the_sample_is_bounded_and_evenly_spread() -> None:
    sample = sample_text(numbered(3000), 50_000)
    assert sample.total == 3_000_000
    assert 20_000 < sample.size == sum(map(len, sample.blocks)) <= 50_000
    assert sample.stride == 128  # two blocks a text
    first = [int(block[:9]) for block in sample.blocks]
    steps = {after - before for before, after in pairwise(first)}
    assert first[0] == 0
    assert first[-1] > 2900
    assert steps == {64}


def test_a_sample_is_the_whole_text_if_that_is_small_enough(corpus: str) -> None:
    sample = sample_text([corpus, "\u65e5" * 1000], 1_000_000)
    assert b"".join(sample.blocks).decode() == corpus + "\u65e5" * 1000
    assert sample.stride == 1


def test_the_share_that_is_trained_on_is_said(corpus: str) -> None:
    tokenizer, lines = train(corpus, kind="bpe", vocab_size=330, max_train_bytes=20_000)
    sample = sample_text([corpus], 20_000)
    assert lines[0] == (
        f"tokenizer: trained on {sample.size:,} of {sample.total:,} bytes ({sample.size / sample.total:.1%}), "
        f"1 block in {sample.stride}, evenly spread (tokenizer.max_train_bytes=20000)"
    )
    assert tokenizer.hash == train(corpus, kind="bpe", vocab_size=330, max_train_bytes=20_000)[0].hash
