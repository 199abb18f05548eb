"""Shards to blocks of equal length: the whole text is used, and nothing is padded."""

from functools import lru_cache

import numpy as np
import torch

from nlpstack.data.batch import IGNORE_INDEX, Batch
from nlpstack.data.loader import Example
from nlpstack.data.shards import TokenShards
from nlpstack.errors import DataError


class PackedBlocks:
    """Blocks of `block_len` inputs and the token after each; an epoch's cuts depend on (seed, epoch) alone."""

    def __init__(self, shards: TokenShards, block_len: int, seed: int) -> None:
        n_targets = len(shards) - 1
        if n_targets < block_len:
            fault = f"a block is longer than the data, which has {len(shards):,} tokens"
            cure = f"set it to at most {max(n_targets, 1)} or give more text"
            raise DataError(f"model.max_seq_len={block_len}: {fault}; {cure}")
        self.shards, self.block_len = shards, block_len
        # One block is given up, so that every epoch can cut at other places and still has the same number of blocks.
        self.n_blocks = max(1, n_targets // block_len - 1)
        slack = min(n_targets - self.n_blocks * block_len, block_len - 1)
        self._first = lru_cache(lambda epoch: int(np.random.default_rng((seed, epoch, 0)).integers(0, slack + 1)))

    def __len__(self) -> int:
        return self.n_blocks

    def block(self, epoch: int, index: int) -> np.ndarray:
        """Block `index` of an epoch: block_len + 1 tokens, int64."""
        start = self._first(epoch) + index * self.block_len
        return self.shards.read(start, start + self.block_len + 1)

    def batch(self, examples: list[Example]) -> Batch:
        """Blocks as one batch: inputs, and each one's next token as its label."""
        rows = np.stack([self.block(epoch, index) for epoch, index in examples])  # (B, T + 1)
        labels = rows[:, 1:].copy()
        spec = self.shards.spec
        if spec.bos_id is not None and spec.bos_id != spec.eos_id:  # after the end of a document BOS is no news
            labels[labels == spec.bos_id] = IGNORE_INDEX
        tokens, n_targets = torch.from_numpy(rows[:, :-1].copy()), int((labels != IGNORE_INDEX).sum())
        return Batch(tokens=tokens, labels={"lm": torch.from_numpy(labels)}, n_targets={"lm": n_targets})
