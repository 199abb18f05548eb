"""Training a SentencePiece model on a stream of text, in bounded memory and with nothing lost silently."""

import io
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece as spm

from nlpstack.errors import ConfigError, DataError
from nlpstack.tokenizer.base import Kind, TokenizerConfig, utf8
from nlpstack.tokenizer.sentencepiece import N_FIXED, SPECIALS, SentencePieceTokenizer, exact_model

Report = Callable[[str], None]

_SETTINGS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("training.toml").read_text("utf-8"))
MAX_LINE = _SETTINGS["max_sentence_length"]  # bytes; SentencePiece skips longer lines
MAX_BLOCK = 65536  # bytes; the grain of the sample

# SentencePiece drops NUL, tab, and carriage return at a line's end, skips lines with U+2585, takes U+2581 for a space.
# Lines are cut at these characters: no piece holds one, and each is encoded as its bytes.
RESERVED = "\0\t\r\u2581\u2585"
_RESERVED = re.compile("|".join(RESERVED).encode())
# It blanks what spells a special token or a byte piece. Cut behind its first character, that is text like any other.
_SPELLED = re.compile(f"(?={'|'.join(map(re.escape, SPECIALS))}|<0x[0-9A-F]{{2}}>).".encode())

CUTS = {
    "reserved": f"characters that SentencePiece reserves ({', '.join(f'U+{ord(c):04X}' for c in RESERVED)}) "
    "get no piece and are encoded as bytes",
    "spelled": "spellings of special tokens or byte pieces in the text are learned as plain text",
    "long": f"lines over {MAX_LINE:,} bytes were cut for training, at a space where there is one",
}
NO_TEXT = "there is no text to train a tokenizer on; give a corpus that is not empty"


class Sample(NamedTuple):
    """The part of a corpus that is trained on: every `stride`-th block of its text."""

    blocks: list[bytes]
    size: int  # bytes in the blocks
    total: int  # bytes in the corpus
    stride: int


def train_tokenizer(
    texts: Iterable[str], config: TokenizerConfig, *, report: Report = lambda line: None
) -> SentencePieceTokenizer:
    """A tokenizer trained on a corpus that comes in parts, in order; `report` takes one line for each thing to know.

    Raises DataError if there is no text, and ConfigError if the text does not support the vocabulary size.
    """
    if config.kind == "char":
        return _train_char(texts, config, report)
    assert config.vocab_size is not None
    sample = sample_text(texts, config.max_train_bytes)
    if sample.stride > 1:
        share = f"{sample.size:,} of {sample.total:,} bytes ({sample.size / sample.total:.1%})"
        spread = f"1 block in {sample.stride}, evenly spread (tokenizer.max_train_bytes={config.max_train_bytes})"
        report(f"tokenizer: trained on {share}, {spread}")
    counts: Counter[str] = Counter()
    tokenizer = _train(_sentences(sample.blocks, counts), config.kind, config.vocab_size, config.character_coverage)
    for what, line in CUTS.items():
        if counts[what]:
            report(f"tokenizer: {counts[what]:,} {line}")
    characters = set[str]().union(*(block.decode() for block in sample.blocks)) - set(RESERVED + "\n")
    pieces = {tokenizer.token_bytes(token) for token in range(N_FIXED, tokenizer.vocab_size)}
    if rare := sum(character.encode() not in pieces for character in characters):
        key = f"tokenizer.character_coverage={config.character_coverage}"
        report(f"tokenizer: {rare:,} rare characters have no piece and are encoded as bytes ({key})")
    return tokenizer


def _train_char(texts: Iterable[str], config: TokenizerConfig, report: Report) -> SentencePieceTokenizer:
    """One piece a character, by code point (the space as U+2581): all of the corpus, or the most frequent ones."""
    counts: Counter[str] = Counter()
    for text in texts:
        utf8(text)
        counts.update(text)
    if not counts:
        raise DataError(NO_TEXT)
    reserved = sum(counts.pop(character, 0) for character in RESERVED)
    del counts["\n"]
    counts[" "] += 1  # SentencePiece writes it as U+2581, which it must know
    most = N_FIXED + len(counts)
    size = config.vocab_size or most
    if size <= N_FIXED:
        raise _too_small(size, N_FIXED + 1)
    if size > most:
        raise _too_large(size, most)
    ranked = sorted(counts, key=lambda character: (character != " ", -counts[character], character))
    kept, rare = ranked[: size - N_FIXED], ranked[size - N_FIXED :]
    if reserved:
        report(f"tokenizer: {reserved:,} {CUTS['reserved']}")
    if rare:
        what = f"the {len(rare):,} rarest characters, {sum(counts[character] for character in rare):,} in all"
        report(f"tokenizer: {what}, are encoded as bytes (tokenizer.vocab_size={size})")
    return _train(_cut("".join(sorted(kept)).encode(), MAX_LINE), "char", size, 1.0)


def sample_text(texts: Iterable[str], limit: int) -> Sample:
    """At most `limit` bytes of the text, in blocks that are spread evenly over all of it."""
    block_size = max(64, min(MAX_BLOCK, limit // 64))
    blocks: list[bytes] = []
    size, total, stride = 0, 0, 1
    for number, block in enumerate(block for text in texts for block in _cut(utf8(text), block_size)):
        total += len(block)
        if number % stride == 0:
            blocks.append(block)
            size += len(block)
        if size > limit:
            blocks = blocks[::2]
            stride *= 2
            size = sum(map(len, blocks))
    return Sample(blocks, size, total, stride)


def _cut(data: bytes, limit: int) -> Iterator[bytes]:
    """Parts of at most `limit` bytes, cut after a line end, else before a space, else between characters."""
    start = 0
    while len(data) - start > limit:
        stop = start + limit
        cut = data.rfind(b"\n", start, stop) + 1 or data.rfind(b" ", start + 1, stop + 1)
        if cut <= 0:  # not inside a character
            cut = next(at for at in range(stop, start, -1) if data[at] & 0xC0 != 0x80)
        yield data[start:cut]
        start = cut
    if start < len(data):
        yield data[start:]


def _sentences(blocks: list[bytes], counts: Counter[str]) -> Iterator[bytes]:
    """The lines of the text in parts that SentencePiece takes as they are; adds what had to be cut to `counts`."""
    for block in blocks:
        plain, n_reserved = _RESERVED.subn(b"\n", block)
        plain, n_spelled = _SPELLED.subn(b"\\g<0>\n", plain)
        counts.update(reserved=n_reserved, spelled=n_spelled)
        for line in plain.split(b"\n"):
            counts["long"] += len(line) > MAX_LINE
            yield from _cut(line, MAX_LINE)


def _train(sentences: Iterable[bytes], kind: Kind, vocab_size: int, coverage: float) -> SentencePieceTokenizer:
    """What SentencePiece makes of the sentences; it draws nothing at random, as it takes all of them."""
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=kind,
            vocab_size=max(vocab_size, N_FIXED + 1),
            character_coverage=coverage,
            **_SETTINGS,
        )
    except RuntimeError as error:
        if found := re.search(r"Please set it to a value <= (\d+)", str(error)):
            raise _too_large(vocab_size, int(found[1])) from error
        if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise _too_small(vocab_size, int(found[1])) from error
        if "!sentences_.empty()" in str(error):
            raise DataError(NO_TEXT) from error
        raise
    if vocab_size <= N_FIXED:
        raise _too_small(vocab_size, N_FIXED + 1)
    return SentencePieceTokenizer(exact_model(model.getvalue(), kind))


def _too_large(size: int, most: int) -> ConfigError:
    return ConfigError(f"tokenizer.vocab_size={size} is more than this text supports; at most {most} (or more text)")


def _too_small(size: int, least: int) -> ConfigError:
    parts = f"{N_FIXED} special tokens and bytes, and the characters"
    return ConfigError(f"tokenizer.vocab_size={size} is too small for this text; at least {least}: {parts}")
