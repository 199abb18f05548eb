"""Blocks and batches: contiguous stretches of the text, in an order that is a pure function of (seed, epoch, index)."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.data.batch import IGNORE_INDEX, Batch, Example, Loader, Shuffled, pad_rows
from nlpstack.data.packing import PackedBlocks
from nlpstack.errors import DataError
from tests.handmade import MakeShards

QUICK = settings(max_examples=40, deadline=None)  # deadlines fail on a busy machine

# -- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_chars", [8, 9, 15, 16, 17, 100, 799, 800])
def test_every_block_is_a_stretch_of_the_text_and_every_epoch_has_as_many(
    make_shards: MakeShards, n_chars: int
) -> None:
    text = "".join(chr(33 + number % 900) for number in range(n_chars))
    shards = make_shards([text], bos_id=None, eos_id=None)
    tokens = shards.read(0, len(shards))
    if n_chars <= 8:
        with pytest.raises(DataError):
            PackedBlocks(shards, 8, seed=1)
        return
    blocks = PackedBlocks(shards, 8, seed=1)
    starts_seen = set()
    for epoch in range(30):
        rows = np.stack([blocks.block(epoch, index) for index in range(len(blocks))])
        assert rows.shape == (len(blocks), 9)
        joined = np.concatenate((rows[:, :-1].ravel(), rows[-1:, -1]))  # neighbours share one token
        starts = [at for at in range(len(tokens)) if np.array_equal(tokens[at : at + len(joined)], joined)]
        assert starts
        assert np.array_equal(rows[1:, 0], rows[:-1, -1])
        starts_seen.add(starts[0])
    assert len(starts_seen) > 1 or n_chars == 9  # cuts differ between epochs where there is room
    assert len(blocks) * 8 <= n_chars - 1 < (len(blocks) + 2) * 8  # at most one block is given up


def test_blocks_are_a_function_of_seed_and_epoch(make_shards: MakeShards) -> None:
    shards = make_shards(["".join(chr(33 + number) for number in range(300))])
    first, second, other = (PackedBlocks(shards, 8, seed=seed) for seed in (1, 1, 2))
    order = [(epoch, index) for epoch in range(6) for index in range(len(first))]
    wanted = {place: first.block(*place).tolist() for place in order}
    for place in reversed(order):
        assert second.block(*place).tolist() == wanted[place]
    assert any(other.block(*place).tolist() != wanted[place] for place in order)


def test_a_block_longer_than_the_data_is_refused_with_the_longest_that_fits(make_shards: MakeShards) -> None:
    shards = make_shards(["abc"])  # five tokens
    with pytest.raises(DataError) as caught:
        PackedBlocks(shards, 5, seed=1)
    assert "model.max_seq_len=5" in str(caught.value)
    assert "at most 4" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(PackedBlocks(shards, 4, seed=1)) == 1


def test_labels_are_the_next_tokens_and_the_beginning_of_a_text_is_none(make_shards: MakeShards) -> None:
    blocks = PackedBlocks(make_shards(["abcd", "ef", "g"] * 5), 8, seed=1)
    examples = [(epoch, index) for epoch in range(3) for index in range(len(blocks))]
    batch = blocks.batch(examples)
    rows = torch.from_numpy(np.stack([blocks.block(*example) for example in examples]))
    assert torch.equal(batch.tokens, rows[:, :-1])
    is_bos = rows[:, 1:] == 1
    assert is_bos.any()
    assert torch.equal(batch.labels["lm"], rows[:, 1:].masked_fill(is_bos, IGNORE_INDEX))
    assert batch.n_targets == {"lm": int((~is_bos).sum())}


def test_a_token_that_begins_and_ends_texts_is_a_label(make_shards: MakeShards) -> None:
    batch = PackedBlocks(make_shards(["ab"] * 9, bos_id=1, eos_id=1), 8, seed=1).batch([(0, 0)])
    assert (batch.labels["lm"] == 1).any()
    assert batch.n_targets == {"lm": 8}


# -- order -----------------------------------------------------------------------------------------------------------


def collate(examples: list[Example]) -> Batch:
    tokens = torch.tensor(examples)
    return Batch(tokens=tokens, labels={"lm": tokens}, n_targets={"lm": len(examples)})


def loader(n_examples: int, batch_size: int, micro_batch: int, seed: int = 1) -> Loader:
    return Loader(Shuffled(n_examples, batch_size=batch_size, seed=seed), collate, micro_batch=micro_batch)


SIZES = st.integers(1, 12)


@QUICK
@given(SIZES, SIZES, st.integers(0, 3))
def test_each_epoch_is_a_permutation_and_batches_run_on_across_epochs(
    n_examples: int, batch_size: int, seed: int
) -> None:
    found = loader(n_examples, batch_size, 1, seed)
    n_steps = -(-3 * n_examples // batch_size)
    examples = [example for step in range(n_steps) for example in found.order.step(step)]
    for epoch in range(3):
        part = examples[epoch * n_examples : (epoch + 1) * n_examples]
        assert sorted(part) == [(epoch, index) for index in range(n_examples)]


@QUICK
@given(SIZES, SIZES, SIZES, st.integers(0, 9))
def test_starting_at_a_step_gives_what_reaching_it_gives(
    n_examples: int, batch_size: int, micro_batch: int, start: int
) -> None:
    reached = list(loader(n_examples, batch_size, micro_batch).steps(0, 12))[start:]
    started = list(loader(n_examples, batch_size, micro_batch).steps(start, 12))
    assert [[batch.tokens.tolist() for batch in step] for step in reached] == [
        [batch.tokens.tolist() for batch in step] for step in started
    ]
    assert len(started) == 12 - start


@QUICK
@given(SIZES, SIZES, SIZES, st.integers(0, 5))
def test_micro_batches_joined_are_the_batch(n_examples: int, batch_size: int, micro_batch: int, step: int) -> None:
    found = loader(n_examples, batch_size, micro_batch)
    parts = found.micro_batches(step)
    assert torch.cat([part.tokens for part in parts]).tolist() == [list(place) for place in found.order.step(step)]
    assert [len(part.tokens) for part in parts[:-1]] == [micro_batch] * (len(parts) - 1)
    assert sum(part.n_targets["lm"] for part in parts) == batch_size


def test_epochs_and_seeds_differ_in_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [index for _, index in loader(50, 50, 50, seed).order.step(epoch)]

    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_nothing_to_do_gives_no_step() -> None:
    assert list(loader(5, 2, 2).steps(3, 3)) == []


def test_another_thread_that_asks_for_another_epoch_changes_nothing(make_shards: MakeShards) -> None:
    shards = make_shards(["".join(chr(33 + number) for number in range(70))])

    def made(order: Shuffled, blocks: PackedBlocks, epoch: int) -> tuple[object, list[int]]:
        return order.step(epoch), blocks.block(epoch, 0).tolist()

    wanted = [made(Shuffled(7, batch_size=7, seed=1), PackedBlocks(shards, 8, seed=1), epoch) for epoch in range(3)]
    assert wanted[0] != wanted[1]
    shared = Shuffled(7, batch_size=7, seed=1), PackedBlocks(shards, 8, seed=1)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda number: made(*shared, number % 3), range(600)))
    assert found == wanted * 200


# -- batches ---------------------------------------------------------------------------------------------------------


def test_rows_are_filled_up_on_the_right() -> None:
    padded = pad_rows([np.array([1, 2, 3]), np.array([4])], -7)
    assert padded.tolist() == [[1, 2, 3], [4, -7, -7]]
    assert padded.dtype == torch.int64


def test_a_batch_moves_whole() -> None:
    batch = Batch(tokens=torch.ones(1, 2), labels={"lm": torch.ones(1, 2)}, mask=None, n_targets={"lm": 2})
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert (moved.tokens.device.type, moved.labels["lm"].device.type) == ("meta", "meta")
    assert (moved.mask, moved.n_targets) == (None, {"lm": 2})
