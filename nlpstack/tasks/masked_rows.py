"""Shards to what a BERT reads: `[CLS] text [SEP]` or `[CLS] text [SEP] text [SEP]`, with hidden tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from nlpstack.data.batch import IGNORE_INDEX, Batch, pad_batch, pad_rows
from nlpstack.data.loader import Example
from nlpstack.data.masking import Masked, describe_masking, mask_tokens
from nlpstack.data.packing import PackedBlocks, SentencePairs
from nlpstack.data.shards import TokenShards

_MASK_SALT = 3  # sets the draws of masks apart from those of order and pairs


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """How rows are made: the tokenizer's marks, and how much is hidden."""

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    random_ids: np.ndarray  # what a hidden token may be replaced by
    word_ids: Callable[[np.ndarray], np.ndarray]  # tokens (T,) -> each one's word (T,), -1 at special ones
    share: float
    whole_words: bool
    length: int  # of a row, its special tokens included


def label_room(n_rows: int, length: int, share: float, *, whole_words: bool) -> int:
    """Labels that a batch has room for: in all likelihood enough, so that its shapes are always the same."""
    mean = share * n_rows * length
    spread = math.sqrt(mean * (4 if whole_words else 1))  # of sums of words' lengths, which vary more
    return _multiple(mean + 6 * spread)


def _multiple(n: float) -> int:
    return 64 * math.ceil(n / 64)


class Row(NamedTuple):
    """One example before tokens are hidden."""

    tokens: np.ndarray  # int64
    n_first: int  # tokens of segment 0: [CLS], the first text and its [SEP]
    label: int | None  # 0: the second text follows the first; 1: it does not; None: there is one text


class PairRows:
    """Two texts a row, of which the second follows the first or does not."""

    def __init__(self, shards: TokenShards, form: RowFormat, seed: int) -> None:
        self.form, self.pairs = form, SentencePairs(shards, form.length - 3, seed)
        cut = f"sentences cut by {shards.spec.sentences}; a language it does not know by English rules"
        self.about = [cut, *self.pairs.report()]

    def __len__(self) -> int:
        return len(self.pairs)

    def row(self, epoch: int, index: int) -> Row:
        """`[CLS] first [SEP] second [SEP]`."""
        first, second, is_next = self.pairs.pair(epoch, index)
        cls, sep = [self.form.cls_id], [self.form.sep_id]
        return Row(np.concatenate((cls, first, sep, second, sep)), len(first) + 2, int(not is_next))


class PackedRows:
    """One text a row, as long as fits, across documents (RoBERTa's FULL-SENTENCES: Liu et al. 2019, section 4.2)."""

    def __init__(self, shards: TokenShards, form: RowFormat, seed: int) -> None:
        self.form, self.blocks = form, PackedBlocks(shards, form.length - 2, seed)
        self.about = [f"rows: {len(self):,} an epoch, each of {form.length - 2} tokens between its marks"]

    def __len__(self) -> int:
        return len(self.blocks)

    def row(self, epoch: int, index: int) -> Row:
        """`[CLS] text [SEP]`."""
        return single_row(self.blocks.block(epoch, index)[:-1], self.form)


class Stretches:
    """The whole text in order, cut into rows of one text, the last of which may be short; the same in every epoch."""

    def __init__(self, shards: TokenShards, form: RowFormat) -> None:
        self.shards, self.form = shards, form
        self.about = [f"rows: {len(self):,}, the whole text in order"]

    def __len__(self) -> int:
        return math.ceil(len(self.shards) / (self.form.length - 2))

    def row(self, epoch: int, index: int) -> Row:
        """`[CLS] text [SEP]`."""
        start = index * (self.form.length - 2)
        return single_row(self.shards.read(start, min(start + self.form.length - 2, len(self.shards))), self.form)


def single_row(tokens: np.ndarray, form: RowFormat) -> Row:
    """`[CLS] text [SEP]`."""
    whole = np.concatenate(([form.cls_id], tokens, [form.sep_id]))
    return Row(whole, len(whole), None)


Rows = PairRows | PackedRows | Stretches  # by (epoch, index): pure functions of these and the seed


@dataclass(frozen=True)
class MaskedRows:
    """Rows with tokens hidden anew in each epoch, a pure function of (seed, epoch, index)."""

    rows: Rows
    form: RowFormat
    seed: int

    def masked(self, epoch: int, index: int) -> tuple[Row, Masked]:
        """A row, and what is hidden in it."""
        row, form = self.rows.row(epoch, index), self.form
        return row, mask_tokens(
            row.tokens,
            form.word_ids(row.tokens),
            share=form.share,
            whole_words=form.whole_words,
            mask_id=form.mask_id,
            random_ids=form.random_ids,
            rng=np.random.default_rng((self.seed, epoch, index, _MASK_SALT)),
        )

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Examples as one batch, every row filled up to the longest one there may be, so that shapes do not change."""
        made = [self.masked(epoch, index) for epoch, index in examples]
        length = self.form.length
        places = np.concatenate([hidden.places + i * length for i, (_, hidden) in enumerate(made)])
        labels = np.concatenate([hidden.labels for _, hidden in made])
        room = label_room(len(examples), length, self.form.share, whole_words=self.form.whole_words)
        room = max(room, _multiple(len(places)))
        given, n_targets = {"mlm": pad_rows([labels], IGNORE_INDEX, room)[0]}, {"mlm": len(labels)}
        n_firsts = None
        if following := [row.label for row, _ in made if row.label is not None]:
            given["nsp"], n_targets["nsp"] = torch.tensor(following), len(following)
            n_firsts = [row.n_first for row, _ in made]
        batch = pad_batch([hidden.tokens for _, hidden in made], n_firsts, self.form.pad_id, length)
        return replace(batch, labels=given, places=pad_rows([places], 0, room)[0], n_targets=n_targets)

    def describe(self, n_rows: int) -> list[str]:
        """What was done to the first rows of the first epoch: tokens hidden, and how full the rows are."""
        made = [self.masked(0, index) for index in range(min(n_rows, len(self.rows)))]
        words = ((self.form.word_ids(row.tokens), hidden) for row, hidden in made)
        padding = 1 - sum(len(row.tokens) for row, _ in made) / (len(made) * self.form.length)
        masking = describe_masking(words, whole_words=self.form.whole_words)
        return [masking, f"padding: {padding:.1%} of {len(made):,} rows"]


def one_hidden_each(tokens: np.ndarray, start: int, stop: int, form: RowFormat) -> Batch:
    """Copies of a row, each with another one of its tokens `start` to `stop` hidden (Salazar et al. 2020, 2.3)."""
    rows, hidden = torch.arange(stop - start), torch.arange(start, stop)
    batch = pad_batch([tokens] * len(rows), None, form.pad_id, form.length)
    batch.tokens[rows, hidden] = form.mask_id
    return replace(batch, labels={"mlm": torch.from_numpy(tokens)[hidden]}, places=rows * form.length + hidden)
