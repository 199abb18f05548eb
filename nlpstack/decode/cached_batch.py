"""Rows of unequal length that grow one token at a time, each token fed to the model once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nlpstack.model import GPT, KVCache


class CachedBatch:
    """All tokens of each row, and the keys and values the model has computed for those its next one depends on.

    A row that fills the model's context goes on from its last `max_seq_len // 2` tokens: it slides. When that happens
    depends on the row's own length only. Rows stand at the right edge of the cache; its width is the longest row's.
    """

    def __init__(self, model: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self.model, self.context = model, model.config.max_seq_len
        self.lengths = list(map(len, prompts))  # of each row's tokens, how many the next one depends on
        self.slides = [0] * len(prompts)
        self.n_prompt = max(self.lengths)
        padded = [[-1] * (self.n_prompt - len(prompt)) + list(prompt) for prompt in prompts]
        self.tokens = torch.tensor(padded, device=model.unembedding.device)  # (B, S), -1 left of the shorter prompts
        max_len = min(self.context, self.n_prompt + max_new_tokens)
        self.cache = KVCache.for_model(model.transformer, len(prompts), max_len)

    @property
    def new(self) -> Tensor:
        """The tokens behind the prompts (B, T)."""
        return self.tokens[:, self.n_prompt :]

    @torch.inference_mode()
    def prefill(self, copies: int) -> Tensor:
        """Logits (B, V) of the token after each prompt, from now on as so many rows; the first call."""
        logits = self.model.next_logits(self.tokens.clamp(min=0), mask=self._mask(), cache=self.cache)
        if copies > 1:
            self._keep([row for row in range(len(self.lengths)) for _ in range(copies)])
        return logits.repeat_interleave(copies, dim=0)

    @torch.inference_mode()
    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Logits (B, V) of the token after each of these rows, once `tokens` (one a row) are added.

        The batch goes on with these rows only, in this order; a row may be named more than once.
        """
        if list(rows) != list(range(len(self.lengths))):
            self._keep(rows)
        if full := [row for row, length in enumerate(self.lengths) if length == self.context]:
            self._slide(full)
        column = torch.tensor(tokens, device=self.tokens.device)[:, None]
        self.tokens = torch.cat((self.tokens, column), dim=1)
        self.lengths = [length + 1 for length in self.lengths]
        return self.model.next_logits(column, cache=self.cache)

    def _slide(self, rows: list[int]) -> None:
        """Let these rows depend, with the token to come, on half a context, and compute what is left of it anew."""
        kept = max(1, self.context // 2) - 1
        for row in rows:
            self.lengths[row] = kept
            self.slides[row] += 1
        if kept:
            part = KVCache.for_model(self.model.transformer, len(rows), kept)
            self.model.transformer(self.tokens[rows, -kept:], cache=part)
            end = self.cache.length
            for old, new in zip(self.cache.keys + self.cache.values, part.keys + part.values, strict=True):
                old[rows, :, end - kept : end] = new
        self._keep(range(len(self.lengths)))

    def _keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, and no more columns of the cache than the longest of them has tokens."""
        self.lengths = [self.lengths[row] for row in rows]
        self.slides = [self.slides[row] for row in rows]
        index = torch.tensor(rows, device=self.tokens.device)
        self.tokens = self.tokens[index]
        cache, width = self.cache, max(self.lengths)
        for tensors in (cache.keys, cache.values):
            for layer, old in enumerate(tensors):
                new = old.new_empty(len(rows), *old.shape[1:])
                new[:, :, :width] = old[index, :, cache.length - width : cache.length]
                tensors[layer] = new
        cache.length, cache.mask = width, self._mask()

    def _mask(self) -> Tensor | None:
        """True (B, S) at the tokens of rows that stand at the right edge; None if all are of one length."""
        width = max(self.lengths)
        if min(self.lengths) == width:
            return None
        lengths = torch.tensor(self.lengths, device=self.tokens.device)
        return torch.arange(width, device=lengths.device) >= width - lengths[:, None]
