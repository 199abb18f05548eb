"""What the tasks on labelled files share: rows of an encoder's input, their batches, and the order of scoring."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nlpstack.data.batch import Batch, Example, by_length, pad_batch
from nlpstack.data.readers import Note
from nlpstack.errors import DataError, ModelError, some
from nlpstack.model import BERT, TransformerConfig
from nlpstack.tasks.base import TaskConfig
from nlpstack.tokenizer import Tokenizer

Result = tuple[int, dict[str, Any]]  # an example's number, and what is predicted for it


class Encoded(NamedTuple):
    """A row of tokens, and which example it is of."""

    tokens: np.ndarray  # (T,) int64
    n_first: int  # tokens of segment 0
    example: int  # its number among the examples
    labels: Any = None  # what the task asks of the row
    words: tuple[int, int] = (0, 0)  # of a tagged sentence: the row owns the words from the first to before the second


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Examples as rows; `label` makes the labels of a batch of rows, and says how many count."""

    examples: Sequence[Any]
    rows: list[Encoded]
    frame: "Frame"
    label: Callable[[list[Encoded]], tuple[dict[str, Tensor], dict[str, int]]]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.tokens) for row in self.rows]

    def count(self, token: int | None) -> int:
        """How often a token stands in the rows."""
        return sum(int((row.tokens == token).sum()) for row in self.rows)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Rows as one batch, padded to the longest of them."""
        rows = [self.rows[index] for _, index in examples]
        n_firsts = [row.n_first for row in rows] if self.frame.segments else None
        batch = pad_batch([row.tokens for row in rows], n_firsts, self.frame.pad_id)
        labels, n_targets = self.label(rows)
        return replace(batch, labels=labels, n_targets=n_targets)

    def batches(self, budget: int) -> Iterator[Batch]:
        """All rows, the longest first, in batches of at most `budget` tokens or one, about them and all examples."""
        for places in by_length(self.lengths, budget):
            batch = self.batch([(0, place) for place in places])
            yield replace(batch, about=([self.rows[place] for place in places], self.examples))


def label_logits(model: BERT, batch: Batch) -> Tensor:
    """A classifier's logits in fp32 or wider: (B, C) of texts, (B, T, C) of tokens."""
    return model.label_logits(model(batch.tokens, mask=batch.mask, segments=batch.segments)).float()


def knows(example: Any, kind: str, names: Iterable[str], known: Collection[str], config: TaskConfig) -> bool:
    """Whether training saw all of an example's labels; DataError if not, unless such examples are left out."""
    strange = [name for name in names if name not in known]
    if strange and not config.ignore_unknown:
        cure = "correct it, or leave such examples out with --unknown-labels ignore"
        raise DataError(f"{example.where}: {kind} {strange[0]!r} is none that training saw ({some(known, 8)}); {cure}")
    return not strange


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What `truncate` cost: texts, or pairs, that were cut, and their tokens that are gone."""

    texts: int = 0
    tokens: int = 0


class Frame:
    """How an encoder's input is framed: [CLS] text [SEP], of a pair [CLS] text [SEP] text [SEP]; a GPT's: its bos."""

    def __init__(self, tokenizer: Tokenizer, config: TransformerConfig, *, truncate: bool) -> None:
        """ModelError if the tokenizer lacks a mark. With `truncate` texts that are too long are cut, and counted."""
        first, last = (tokenizer.bos_id, None) if config.causal else (tokenizer.cls_id, tokenizer.sep_id)
        if not config.causal and (first is None or last is None):
            raise ModelError("the tokenizer has no [CLS] or no [SEP] token, which begin and end a BERT's input")
        self.cls, self.sep = ([] if mark is None else [mark] for mark in (first, last))
        # RoBERTa has no segments, and sets two marks between texts.
        self.between = self.sep * (2 if config.position_offset else 1)
        self.tokenizer, self.length, self.truncate = tokenizer, config.max_seq_len, truncate
        self.segments = config.n_segments > 1  # whether the model tells the texts of a pair apart
        self.pad_id = tokenizer.pad_id or 0
        self.cut = Cut()

    def rows(self, texts: Sequence[tuple[str, str, str | None]]) -> Iterator[tuple[np.ndarray, int]]:
        """Tokens and how many are of the first segment, of (where, text, second text or None)."""
        firsts = self.tokenizer.encode_batch([text for _, text, _ in texts], threads=torch.get_num_threads())
        pairs = [other for _, _, other in texts if other is not None]
        seconds = iter(self.tokenizer.encode_batch(pairs, threads=torch.get_num_threads()) if pairs else [])
        for (where, _, other), first in zip(texts, firsts, strict=True):
            between, second = ([], first[:0]) if other is None else (self.between, next(seconds))
            over = len(self.cls) + len(first) + len(between) + len(second) + len(self.sep) - self.length
            if over > 0:
                first, second = self._cut(where, first, second, over)
            parts: list[Any] = [self.cls, first, between, second, self.sep]
            if not any(map(len, parts)):
                raise DataError(f"{where}: the tokenizer finds no token in it; remove the line")
            n_first = len(self.cls) + len(first) + 1  # its mark is of the first segment
            yield np.concatenate(parts).astype(np.int64), n_first

    def _cut(self, where: str, first: np.ndarray, second: np.ndarray, over: int) -> tuple[np.ndarray, np.ndarray]:
        """The texts with `over` tokens fewer, taken from the end of the longer one until both are as long."""
        if not self.truncate:
            size = f"has {self.length + over:,} tokens with its marks, the model's context {self.length:,}"
            cure = "shorten it, or cut what is too long: --truncate (predict, embed), else --set task.truncate=true"
            raise DataError(f"{where}: {size}; {cure}")
        self.cut = Cut(texts=self.cut.texts + 1, tokens=self.cut.tokens + over)
        room = len(first) + len(second) - over
        shorter = min(len(first), len(second), room // 2)
        n_first = shorter if len(first) <= len(second) else room - shorter
        return first[:n_first], second[: room - n_first]

    def note_cuts(self, what: str, note: Note) -> None:
        """Say how many texts were cut."""
        if n_cut := self.cut.texts:
            note(f"{what}: {n_cut:,} texts are longer than {self.length:,} tokens and were cut (task.truncate)")
            self.cut = Cut()
