"""Token shards to examples: blocks of equal length, which use the whole text without padding, or pairs of texts."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from nlpstack.data.batch import IGNORE_INDEX, Batch, Example
from nlpstack.data.shards import TokenShards
from nlpstack.errors import DataError

SHORT_SHARE = 0.1  # of pairs that are made for a shorter length, so that a model meets short inputs too
_SALT = 2  # sets the draws of pairs apart from others of the same seed, epoch and index
Stretch = tuple[int, int]  # the first token and the one after the last


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


class Pair(NamedTuple):
    """Two texts, neither of them empty; the second follows the first or comes from elsewhere."""

    first: np.ndarray  # int64 tokens
    second: np.ndarray
    is_next: bool  # the second is how the first goes on


class SentencePairs:
    """Next-sentence pairs (Devlin et al. 2019, appendix A.2); each is a pure function of (seed, epoch, index).

    Documents of at least two sentences are cut into chunks of consecutive sentences with at least `max_tokens` tokens
    in all, if there are as many. Each chunk is an example of every epoch, divided and paired anew in each.
    """

    def __init__(self, shards: TokenShards, max_tokens: int, seed: int) -> None:
        assert max_tokens >= 2
        assert shards.spec.sentences
        self.shards, self.max_tokens, self.seed = shards, max_tokens, seed
        self.ends = shards.sentence_ends  # (sentences,)
        self.starts = np.concatenate(([0], self.ends[:-1])).astype(np.int64)
        last = np.searchsorted(self.ends, shards.ends, side="right")  # (documents,): sentence after a document's last
        first = np.concatenate(([0], last[:-1])).astype(np.int64)
        usable = last - first >= 2
        if usable.sum() < 2:
            fault = "next-sentence pairs need at least two documents of two sentences or more; this text has"
            cure = "make each paragraph a document with --documents paragraphs, or leave the task out with"
            there = f"{int(usable.sum())}, of {len(usable):,} in all"
            raise DataError(f"{fault} {there}; {cure} --set task.nsp=false")
        self.n_left_out = int((~usable).sum())
        self.used = np.repeat(usable, last - first)  # (sentences,): whether its document has two
        self.first, self.last = first[usable], last[usable]  # (used documents,): its sentences are first to last - 1
        # All documents are cut into chunks at once, but for one step of plain Python a chunk.
        full = np.searchsorted(self.ends, self.starts + self.max_tokens) + 1
        # (sentences,): where a chunk that begins with this sentence stops: at the latest at its document's end
        stop = np.minimum(np.maximum(full, np.arange(len(full)) + 2), np.repeat(last, last - first))
        stops = stop.data  # whose items plain Python reads faster
        begins: list[int] = []
        for sentence, end in zip(self.first.tolist(), self.last.tolist(), strict=True):
            while sentence < end:
                begins.append(min(sentence, end - 2))  # the last sentence alone takes the one before along
                sentence = stops[sentence]
        self.chunk_first = np.array(begins)  # (chunks,)
        self.chunk_last = stop[self.chunk_first]
        # (used documents + 1,): each one's first chunk
        self.chunks = np.append(np.searchsorted(self.chunk_first, self.first), len(begins))

    def __len__(self) -> int:
        return len(self.chunk_first)

    def pair(self, epoch: int, index: int) -> Pair:
        """Pair `index` of an epoch: at most `max_tokens` tokens in all."""
        rng = np.random.default_rng((self.seed, epoch, index, _SALT))
        target = int(rng.integers(2, self.max_tokens, endpoint=True)) if rng.random() < SHORT_SHARE else self.max_tokens
        begin, last = int(self.chunk_first[index]), int(self.chunk_last[index])
        last = self._reach(begin, last, target, at_least=2)
        middle = int(rng.integers(begin + 1, last))
        is_next = bool(rng.random() < 0.5)
        start, cut, stop = (int(self.starts[begin]), int(self.starts[middle]), int(self.ends[last - 1]))
        second = (cut, stop) if is_next else self._elsewhere(index, target - (cut - start), rng)
        first, second = truncate((start, cut), second, target, rng)
        return Pair(self.shards.read(*first), self.shards.read(*second), is_next)

    def _reach(self, begin: int, last: int, n_tokens: int, *, at_least: int) -> int:
        """The sentence after those that together have `n_tokens` tokens, if there are so many before `last`."""
        place = int(np.searchsorted(self.ends[begin:last], self.starts[begin] + n_tokens)) + 1
        return min(begin + max(place, at_least), last)

    def _elsewhere(self, index: int, n_tokens: int, rng: np.random.Generator) -> Stretch:
        """Sentences of another document than a chunk's own, with `n_tokens` in all or more."""
        own = int(np.searchsorted(self.chunks, index, side="right")) - 1
        low, high = int(self.chunks[own]), int(self.chunks[own + 1])
        chunk = int(rng.integers(len(self) - (high - low)))
        chunk += (high - low) * (chunk >= low)
        document = int(np.searchsorted(self.chunks, chunk, side="right")) - 1
        begin = int(rng.integers(self.chunk_first[chunk], self.chunk_last[chunk]))
        last = self._reach(begin, int(self.last[document]), n_tokens, at_least=1)
        return int(self.starts[begin]), int(self.ends[last - 1])

    def report(self) -> list[str]:
        """Lines for the log: how many pairs there are, and of what they are made."""
        lengths = (self.ends - self.starts)[self.used]
        left_out = f"{self.n_left_out:,} documents of fewer than two sentences are left out"
        pairs = f"next-sentence pairs: {len(self):,} an epoch, from {len(self.first):,} documents; {left_out}"
        most = f"of {lengths.mean():.1f} tokens on average and at most {lengths.max():,}"
        n_long = int((lengths > self.max_tokens).sum())
        cut = [f"{n_long:,} sentences are longer than {self.max_tokens} tokens and will be cut"] if n_long else []
        return [pairs, f"sentences: {len(lengths):,}, {most}", *cut]


def truncate(first: Stretch, second: Stretch, target: int, rng: np.random.Generator) -> tuple[Stretch, Stretch]:
    """Two stretches cut to `target` tokens in all.

    While there are more, the longer one, or of equals the second, loses its first or its last token with probability
    1/2, as in BERT's `truncate_seq_pair`: what is left is known before, and how many go in front is binomial.
    """
    sizes = first[1] - first[0], second[1] - second[0]
    n_first = min(sizes[0], max(target - sizes[1], (target + 1) // 2))
    kept = n_first, min(sizes[1], target - n_first)
    parts = zip((first[0], second[0]), sizes, kept, strict=True)
    begins = [start + int(rng.binomial(size - left, 0.5)) for start, size, left in parts]
    return (begins[0], begins[0] + kept[0]), (begins[1], begins[1] + kept[1])
