"""Batches of examples of like length: every example once an epoch, under a budget, with little padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.data.batch import Bucketed

QUICK = settings(max_examples=60, deadline=None)
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@QUICK
@given(LENGTHS, st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_has_each_example_once(lengths: list[int], batch_size: int, seed: int) -> None:
    order = Bucketed(lengths, batch_size=batch_size, seed=seed)
    per_epoch = order.n_steps(1)
    for epoch in range(3):
        steps = [order.step(step) for step in range(order.n_steps(epoch), order.n_steps(epoch + 1))]
        assert sorted(example for step in steps for example in step) == [(epoch, i) for i in range(len(lengths))]
        assert all(1 <= len(step) <= batch_size for step in steps)
    assert order.n_steps(0.5) == -(-per_epoch // 2)


@QUICK
@given(LENGTHS, st.integers(1, 120), st.integers(0, 3))
def test_a_batch_padded_to_its_longest_row_keeps_to_the_budget(lengths: list[int], budget: int, seed: int) -> None:
    order = Bucketed(lengths, batch_tokens=budget, seed=seed)
    for epoch in range(2):
        for batch in order.batches(epoch):
            longest = max(lengths[i] for i in batch)
            assert len(batch) == 1 or len(batch) * longest <= budget
            assert len(batch) <= order.batch_size


@QUICK
@given(LENGTHS, st.integers(1, 9), st.integers(0, 30))
def test_a_step_is_the_same_however_it_is_reached(lengths: list[int], batch_size: int, start: int) -> None:
    whole, resumed = (Bucketed(lengths, batch_size=batch_size, seed=4) for _ in range(2))
    reached = [whole.step(step) for step in range(start + 3)][start:]
    assert [resumed.step(step) for step in range(start, start + 3)] == reached
    assert resumed.step(0) == whole.step(0)


def test_ragged_examples_are_padded_by_less_than_five_percent() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3, 0.7, 5000).astype(int), 4, 128)
    shuffled = [lengths[start : start + 32] for start in range(0, 5000, 32)]
    assert 1 - lengths.sum() / sum(len(part) * part.max() for part in shuffled) > 0.4  # what is saved
    assert Bucketed(lengths, batch_size=32, seed=1).padding() < 0.05
    assert Bucketed(lengths, batch_tokens=1024, seed=1).padding() < 0.05


def test_epochs_and_seeds_differ() -> None:
    def first(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(Bucketed([5] * 50 + [9] * 49, batch_size=8, seed=seed).batches(epoch)[0])

    assert len({first(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("given_size", [{}, {"batch_size": 2, "batch_tokens": 9}])
def test_one_measure_of_a_batch_is_given(given_size: dict) -> None:
    with pytest.raises(AssertionError):
        Bucketed([1, 2], seed=1, **given_size)
