"""The order of examples: a pure function of (seed, epoch, index), the same for any resume."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nlpstack.data.batch import Batch

Example = tuple[int, int]  # (epoch, index within it)


class Loader:
    """Batches of step after step; where an epoch ends inside a batch, the next one begins in it."""

    def __init__(
        self,
        n_examples: int,
        collate: Callable[[list[Example]], Batch],
        *,
        batch_size: int,
        micro_batch: int,
        seed: int,
    ) -> None:
        self.n_examples, self.collate, self.seed = n_examples, collate, seed
        self.batch_size, self.micro_batch = batch_size, micro_batch
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))  # the epoch last asked for

    def examples(self, step: int) -> list[Example]:
        """Which examples step `step` (from 0) trains on."""
        start = step * self.batch_size
        return [self._example(number) for number in range(start, start + self.batch_size)]

    def _example(self, number: int) -> Example:
        epoch, place = divmod(number, self.n_examples)
        order = self._order  # read once: another thread may ask for another epoch meanwhile
        if order[0] != epoch:
            order = epoch, np.random.default_rng((self.seed, epoch, 1)).permutation(self.n_examples)
            self._order = order
        return epoch, int(order[1][place])

    def micro_batches(self, step: int) -> list[Batch]:
        """The batches that make up one step."""
        examples = self.examples(step)
        return [
            self.collate(examples[start : start + self.micro_batch])
            for start in range(0, len(examples), self.micro_batch)
        ]

    def steps(self, start: int, stop: int, *, pin: bool = False) -> Iterator[list[Batch]]:
        """Each step's batches from `start` on, the next one made while this one is worked on."""

        def make(step: int) -> list[Batch]:
            batches = self.micro_batches(step)
            return [batch.pin() for batch in batches] if pin else batches

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            coming = pool.submit(make, start) if start < stop else None
            for step in range(start, stop):
                assert coming is not None
                batches = coming.result()
                coming = pool.submit(make, step + 1) if step + 1 < stop else None
                yield batches
