"""What a model is trained and scored on: token rows of equal length, with their labels counted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

IGNORE_INDEX = -100  # a label that does not count, in every loss of torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens with what is asked of them; labels, their counts and the terms of the loss share their keys."""

    tokens: Tensor  # (B, T) int64
    labels: dict[str, Tensor]  # int64, IGNORE_INDEX where nothing counts: "lm" (B, T), "mlm" (N,), "nsp" (B,)
    mask: Tensor | None = None  # (B, T) bool, True at real tokens; None: all are, or padding cannot be seen
    segments: Tensor | None = None  # (B, T) int64, which text of a pair a token belongs to; None: there is one
    places: Tensor | None = None  # (N,) int64: where in the B * T tokens, row after row, the labels "mlm" stand
    n_targets: dict[str, int] = field(default_factory=dict)  # loss term -> labels that count

    @property
    def n_tokens(self) -> int:
        """Real tokens: padding does not count."""
        return self.tokens.numel() if self.mask is None else int(self.mask.sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on another device; the copy may go on in the background."""
        return self if self.tokens.device == device else self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies without waiting."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {name: change(v) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, labels={name: change(tensor) for name, tensor in self.labels.items()}, **changed)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A batch that is scored, with what else its scores need."""

    batch: Batch

    def to(self, device: torch.device) -> Self:
        """The same with its tensors on another device."""
        return replace(self, batch=self.batch.to(device))


def pad_rows(rows: Sequence[np.ndarray], value: int, length: int = 0) -> Tensor:
    """Rows of unequal length as one int64 tensor (B, T), filled up on the right with `value`, to `length` if given."""
    out = np.full((len(rows), length or max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def pad_batch(rows: Sequence[np.ndarray], n_firsts: Sequence[int] | None, pad_id: int, length: int = 0) -> Batch:
    """Rows as a batch without labels, padded on the right, to `length` if given; no mask where nothing is padded.

    `n_firsts`: so many tokens of each row are of segment 0; None: the model does not tell segments apart.
    """
    tokens = pad_rows(rows, pad_id, length)  # (B, T)
    places = torch.arange(tokens.shape[1])
    real = places < torch.tensor([len(row) for row in rows])[:, None]
    segments = None if n_firsts is None else (real & (places >= torch.tensor(n_firsts)[:, None])).long()
    return Batch(tokens=tokens, labels={}, mask=None if real.all() else real, segments=segments)


def by_length(lengths: Sequence[int] | np.ndarray, tokens: int = 0, *, rows: int = 0) -> Iterator[list[int]]:
    """Numbers of rows of like length, longest first, in batches of `rows`, or of at most `tokens` or of one row."""
    order: list[int] = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    start = 0
    while start < len(order):
        stop = start + (rows or max(1, tokens // max(1, lengths[order[start]])))
        yield order[start:stop]
        start = stop
