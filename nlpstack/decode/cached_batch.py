"""Rows of unequal length that grow one token at a time, each token fed to the model once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nlpstack.model import GPT, KVCache


class CachedBatch:
    """The tokens each row's next one depends on, and the keys and values the model has computed for them.

    A row that fills the model's context goes on from its last `max_seq_len // 2` tokens: it slides. When that happens
    depends on the row's own length only. Rows stand at the right edge of the cache; its width is the longest row's.
    """

    def __init__(self, model: GPT, windows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self.model = model
        self.context = model.config.max_seq_len
        self.windows = [list(window) for window in windows]
        self.slides = [0] * len(windows)
        max_len = min(self.context, self._width + max_new_tokens)
        self.cache = KVCache.for_model(model.transformer, len(windows), max_len)

    @property
    def _width(self) -> int:
        return max(map(len, self.windows))

    @property
    def _device(self) -> torch.device:
        return self.model.unembedding.device

    def prefill(self) -> Tensor:
        """Logits (B, V) of the token after each row as it was given; the first call."""
        width = self._width
        padded = [[0] * (width - len(window)) + window for window in self.windows]
        return self.model.next_logits(
            torch.tensor(padded, device=self._device), mask=self._mask(width), cache=self.cache
        )

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Logits (B, V) of the token after each row, once `tokens` (one a row) are added."""
        if full := [row for row, window in enumerate(self.windows) if len(window) == self.context]:
            self._slide(full)
        for window, token in zip(self.windows, tokens, strict=True):
            window.append(token)
        return self.model.next_logits(torch.tensor(tokens, device=self._device)[:, None], cache=self.cache)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order; a row may be named more than once."""
        if list(rows) == list(range(len(self.windows))):
            return
        self.windows = [list(self.windows[row]) for row in rows]
        self.slides = [self.slides[row] for row in rows]
        self._repack(rows)

    def _slide(self, rows: list[int]) -> None:
        """Cut the windows so that with the token to come they hold half a context, and compute what is left anew."""
        kept = max(1, self.context // 2) - 1
        for row in rows:
            self.windows[row] = self.windows[row][self.context - kept :]
            self.slides[row] += 1
        if kept:
            part = KVCache.for_model(self.model.transformer, len(rows), kept)
            tokens = torch.tensor([self.windows[row] for row in rows], device=self._device)
            self.model.transformer(tokens, cache=part)
            end = self.cache.length
            for old, new in zip(self.cache.keys + self.cache.values, part.keys + part.values, strict=True):
                old[rows, :, end - kept : end] = new
        self._repack(range(len(self.windows)))

    def _repack(self, rows: Sequence[int]) -> None:
        """Keep these rows of the cache and no more columns than the longest of them has tokens."""
        cache, width = self.cache, self._width
        index = torch.tensor(rows, device=self._device)
        for tensors in (cache.keys, cache.values):
            for layer, old in enumerate(tensors):
                new = old.new_empty(len(rows), *old.shape[1:])
                new[:, :, :width] = old[index, :, cache.length - width : cache.length]
                tensors[layer] = new
        cache.length = width
        cache.mask = self._mask(width)

    def _mask(self, width: int) -> Tensor | None:
        """True (B, width) at the tokens of rows that stand at the right edge; None if every row is that wide."""
        lengths = [len(window) for window in self.windows]
        if min(lengths) == width:
            return None
        column = torch.arange(width, device=self._device)
        return column >= width - torch.tensor(lengths, device=self._device)[:, None]
