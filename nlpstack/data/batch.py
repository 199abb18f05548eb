"""Batches: rows of tokens with their labels counted; and their order, a pure function of (seed, epoch, index)."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE_INDEX = -100  # a label that does not count, in every loss of torch
Example = tuple[int, int]  # (epoch, index within it)
_POOL = 200  # batches whose examples are sorted by length together


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens with what is asked of them; labels, their counts and the terms of the loss share their keys."""

    tokens: Tensor  # (B, T) int64
    labels: dict[str, Tensor]  # int64, IGNORE_INDEX where nothing counts: "lm" (B, T), "mlm" (N,), "nsp" (B,)
    mask: Tensor | None = None  # (B, T) bool, True at real tokens; None: all are, or padding cannot be seen
    segments: Tensor | None = None  # (B, T) int64, which text of a pair a token belongs to; None: there is one
    places: Tensor | None = None  # (N,) int64: where in the B * T tokens, row after row, the labels "mlm" stand
    n_targets: dict[str, int] = field(default_factory=dict)  # loss term -> labels that count
    about: Any = None  # of a batch that is scored: what else its task's scores need
    idle: bool = False  # only keeps step with the batches of other processes: nothing of it counts

    @property
    def n_tokens(self) -> int:
        """Real tokens: padding does not count."""
        return 0 if self.idle else self.tokens.numel() if self.mask is None else int(self.mask.sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on another device; the copy may go on in the background."""
        return self if self.tokens.device == device else self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies without waiting."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {name: change(v) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, labels={name: change(tensor) for name, tensor in self.labels.items()}, **changed)


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


class Shuffled:
    """Batches of equal size; where an epoch ends inside a batch, the next one begins in it."""

    def __init__(self, n_examples: int, *, batch_size: int, seed: int) -> None:
        self.n_examples, self.batch_size = n_examples, batch_size
        self._order = lru_cache(1)(lambda epoch: np.random.default_rng((seed, epoch, 1)).permutation(n_examples))

    def step(self, step: int) -> list[Example]:
        """The examples of step `step` (from 0)."""
        places = (divmod(step * self.batch_size + row, self.n_examples) for row in range(self.batch_size))
        return [(epoch, int(self._order(epoch)[place])) for epoch, place in places]

    def n_steps(self, epochs: float) -> int:
        """Steps that so many epochs take."""
        return math.ceil(epochs * self.n_examples / self.batch_size)


class Bucketed:
    """Batches of examples of like length, in random order; every epoch has each example once.

    A batch has at most `batch_size` rows or, padded to its longest row, `batch_tokens` tokens.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int = 0, batch_tokens: int = 0, seed: int) -> None:
        assert bool(batch_size) != bool(batch_tokens)
        self.lengths, self.seed = np.asarray(lengths), seed
        self.n_examples = len(self.lengths)
        self._rows, self._tokens = batch_size, batch_tokens
        self.batch_size = min(self.n_examples, self._rows or max(1, self._tokens // int(self.lengths.min())))
        self._ends: list[int] = []  # the step after each epoch's last, of the epochs seen so far
        self._cached = lru_cache(1)(self.batches)  # of the epoch last asked for
        self._lock = Lock()  # the loader asks from a thread of its own

    def step(self, step: int) -> list[Example]:
        """The examples of step `step` (from 0)."""
        with self._lock:
            while not self._ends or self._ends[-1] <= step:
                self._ends.append((self._ends or [0])[-1] + len(self._cached(len(self._ends))))
            epoch = bisect_right(self._ends, step)
            batch = self._cached(epoch)[step - (self._ends[epoch - 1] if epoch else 0)]
        return [(epoch, int(index)) for index in batch]

    def n_steps(self, epochs: float) -> int:
        """Steps that so many epochs take; of a part of an epoch, that part of its steps."""
        whole = int(epochs)
        counts = [len(self.batches(epoch)) for epoch in range(math.ceil(epochs))]
        return sum(counts[:whole]) + math.ceil((epochs - whole) * counts[-1] if epochs > whole else 0)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch: shuffled, sorted by length within pools of some 200 batches, cut, shuffled."""
        rng = np.random.default_rng((self.seed, epoch, 1))
        order = rng.permutation(self.n_examples)
        pool = _POOL * (self._rows or max(1, self._tokens // max(1, int(self.lengths.mean()))))
        parts = (order[start : start + pool] for start in range(0, len(order), pool))
        found = [part[rows] for part in parts for rows in by_length(self.lengths[part], self._tokens, rows=self._rows)]
        return [found[i] for i in rng.permutation(len(found))]

    def padding(self) -> float:
        """The share of padding in the tokens of the first epoch's batches."""
        padded = sum(len(batch) * int(self.lengths[batch].max()) for batch in self.batches(0))
        return 1 - int(self.lengths.sum()) / padded


Order = Shuffled | Bucketed  # which examples each step trains on, at most `batch_size` of its `n_examples`


@dataclass
class Loader:
    """The batches of step after step, made one step ahead."""

    order: Order
    collate: Callable[[list[Example]], Batch]
    micro_batch: int = field(kw_only=True)
    share: tuple[int, int] = field(default=(0, 1), kw_only=True)  # which process, of how many

    def micro_batches(self, step: int, *, pin: bool = False) -> list[Batch]:
        """This process's batches of one step, as many as all others have, in page-locked memory with `pin`."""
        (first, every), size, examples = self.share, self.micro_batch, self.order.step(step)
        own, n_batches = examples[first::every], math.ceil(len(examples) / (every * size))
        parts = (own[place * size : (place + 1) * size] for place in range(n_batches))
        batches = (self.collate(part) if part else self._idle(examples[:1]) for part in parts)
        return [batch.pin() if pin else batch for batch in batches]

    def _idle(self, examples: list[Example]) -> Batch:
        batch = self.collate(examples)
        return replace(batch, idle=True, n_targets=dict.fromkeys(batch.n_targets, 0))

    def steps(self, start: int, stop: int, *, pin: bool = False) -> Iterator[list[Batch]]:
        """Each step's batches from `start` on, the next one made while this one is worked on."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            submitted = (pool.submit(self.micro_batches, step, pin=pin) for step in range(start, stop))
            coming = next(submitted, None)
            while coming is not None:
                batches, coming = coming.result(), next(submitted, None)
                yield batches
