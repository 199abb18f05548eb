"""Every token of every document is scored once, with the context that window and stride give it."""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlpstack.data.batch import IGNORE_INDEX
from nlpstack.data.shards import TokenShards
from nlpstack.tasks.causal_lm import Window, batch_windows, windows
from tests.handmade import MakeShards

QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)


def text(n: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("abcdefgh ", k=n))


def scored_by_hand(tokens: list[int], window: int, stride: int) -> list[tuple[int, list[int]]]:
    """Each scored token's place, and its context: that of the first window that holds it as a target."""
    found: dict[int, list[int]] = {}
    for start in range(0, len(tokens), stride):
        for place in range(start + 1, min(start + window, len(tokens) - 1) + 1):
            found.setdefault(place, tokens[start:place])
    return sorted(found.items())


def scored_by_windows(parts: list[Window]) -> list[tuple[int, list[int]]]:
    found = []
    for part in parts:
        row = part.tokens.tolist()
        found += [(row[at], row[:at]) for at in range(len(row) - part.n_scored, len(row))]
    return found


@QUICK
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    window=st.integers(1, 12),
    back=st.integers(0, 11),
    bos=st.booleans(),
    eos=st.booleans(),
)
def test_each_token_is_scored_once_with_the_context_of_its_first_window(
    make_shards: MakeShards, lengths: list[int], window: int, back: int, bos: bool, eos: bool
) -> None:
    stride = max(1, window - back)
    texts = [text(n, seed) for seed, n in enumerate(lengths)]
    shards = make_shards(texts, bos_id=1 if bos else None, eos_id=2 if eos else None)
    parts = list(windows(shards, window, stride, 0))
    for number, (start, stop, n_words) in enumerate(shards.documents()):
        tokens = shards.read(start, stop - eos).tolist()
        own = [part for part in parts if part.document == number]
        by_hand = [(tokens[place], context) for place, context in scored_by_hand(tokens, window, stride)]
        assert scored_by_windows(own) == by_hand
        assert len(by_hand) == len(tokens) - 1
        assert all(part.n_words == n_words and part.n_targets == len(tokens) - 1 for part in own)
        assert all(part.n_scored > 0 for part in own)


def test_with_a_beginning_of_text_token_the_first_token_counts_and_without_it_does_not(
    make_shards: MakeShards,
) -> None:
    for bos_id, wanted in ((1, [100, 101, 102]), (None, [101, 102])):
        shards = make_shards(["abc"], bos_id=bos_id)
        scored = [token for part in windows(shards, 8, 8, 0) for token in part.scored().tolist()]
        assert scored == wanted


def test_the_end_of_text_token_is_not_scored(make_shards: MakeShards) -> None:
    shards = make_shards(["ab", "c"], bos_id=1, eos_id=2)
    assert 2 in shards.read(0, len(shards))
    assert all(2 not in part.tokens for part in windows(shards, 8, 8, 0))


@pytest.mark.parametrize("max_tokens", [1, 5, 8, 9, 20, 21, 1000])
def test_scoring_ends_after_about_as_many_tokens_as_asked(make_shards: MakeShards, max_tokens: int) -> None:
    shards = make_shards([text(20, 1), text(20, 2), text(20, 3)])
    parts = list(windows(shards, 8, 4, max_tokens))
    n_scored = sum(part.n_scored for part in parts)
    assert n_scored >= min(max_tokens, 60)
    assert n_scored - parts[-1].n_scored < max_tokens
    everything = scored_by_windows(list(windows(shards, 8, 4, 0)))
    assert scored_by_windows(parts) == everything[:n_scored]


def batched(shards: TokenShards, window: int, stride: int, batch_tokens: int) -> list[Window]:
    """The windows of all batches, after checking that each batch holds them and fits the budget."""
    found = []
    for group in batch_windows(windows(shards, window, stride, 0), window, batch_tokens):
        tokens, labels = group.tokens, group.labels["lm"]
        assert tokens.shape == labels.shape == (len(group.about), max(len(w.tokens) for w in group.about) - 1)
        assert len(group.about) == 1 or tokens.numel() <= batch_tokens
        for row, targets, part in zip(tokens, labels, group.about, strict=True):
            n, skipped = len(part.tokens) - 1, len(part.tokens) - 1 - part.n_scored
            assert row[:n].tolist() == part.tokens[:-1].tolist()
            assert targets[skipped:n].tolist() == part.scored().tolist()
            assert (targets[:skipped] == IGNORE_INDEX).all()
            assert (targets[n:] == IGNORE_INDEX).all()
        found += group.about
    return found


@QUICK
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    window=st.integers(1, 12),
    back=st.integers(0, 11),
    batch_tokens=st.integers(1, 60),
)
def test_batches_hold_every_window_once_within_their_budget(
    make_shards: MakeShards, lengths: list[int], window: int, back: int, batch_tokens: int
) -> None:
    stride = max(1, window - back)
    shards = make_shards([text(n, seed) for seed, n in enumerate(lengths)])

    def key(part: Window) -> tuple[int, list[int], int]:
        return part.document, part.tokens.tolist(), part.n_scored

    wanted = sorted(map(key, windows(shards, window, stride, 0)))
    assert sorted(map(key, batched(shards, window, stride, batch_tokens))) == wanted


def test_short_windows_are_batched_with_their_like(make_shards: MakeShards) -> None:
    lengths = [2, 30] * 20
    shards = make_shards([text(n, seed) for seed, n in enumerate(lengths)])
    groups = list(batch_windows(windows(shards, 32, 32, 0), 32, 64))
    n_cells = sum(group.tokens.numel() for group in groups)
    assert n_cells <= 1.1 * sum(n + 1 for n in lengths)


def test_a_window_batch_moves_with_its_tensors(make_shards: MakeShards) -> None:
    (group,) = batch_windows(windows(make_shards(["abc"]), 8, 8, 0), 8, 64)
    moved = group.to(torch.device("meta"))
    assert moved.tokens.device.type == "meta"
    assert moved.about is group.about
