"""What a masked language model has to guess: chosen at the stated shares, special tokens never."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nlpstack.tasks.masked_lm import KEPT, MASKED, RANDOM, Masked, MaskedRows, RowFormat, mask_tokens

QUICK = settings(max_examples=150, deadline=None)  # deadlines fail on a busy machine
MASK = 4
IDS = np.array([7, 8, 9, 11, 12, 13, 20, 21, 22, 23])  # 10 is special, too
N_TOKENS = 240_000


def form(words: np.ndarray, share: float, whole_words: bool, ids: np.ndarray = IDS) -> RowFormat:
    """Rows whose tokens are of these words."""
    return RowFormat(
        cls_id=1,
        sep_id=2,
        mask_id=MASK,
        pad_id=0,
        random_ids=ids,
        word_ids=lambda _: words,
        share=share,
        whole_words=whole_words,
        length=len(words),
    )


def mask(words: np.ndarray, share: float, whole_words: bool, seed: int = 0) -> tuple[np.ndarray, Masked]:
    """Tokens of which each is told by its number from 1,000, and what becomes of them."""
    tokens = np.arange(1000, 1000 + len(words))
    return tokens, mask_tokens(tokens, form(words, share, whole_words), np.random.default_rng(seed))


ROWS = st.lists(st.integers(-1, 1), max_size=60).map(
    # -1: a special token, 0: the word goes on, 1: the next word begins
    lambda steps: np.array([-1 if step < 0 else sum(s == 1 for s in steps[: i + 1]) for i, step in enumerate(steps)])
)
ROWS = ROWS.map(lambda row: row.astype(np.int64))


@QUICK
@given(ROWS, st.floats(0, 1), st.booleans(), st.integers(0, 1000))
def test_only_chosen_places_change_and_labels_are_the_originals(
    words: np.ndarray, share: float, whole_words: bool, seed: int
) -> None:
    tokens, found = mask(words, share, whole_words, seed)
    assert tokens.tolist() == list(range(1000, 1000 + len(words)))  # the input is as it was
    assert (np.diff(found.places) > 0).all()
    assert (words[found.places] >= 0).all()
    assert found.labels.tolist() == tokens[found.places].tolist()
    others = np.delete(np.arange(len(tokens)), found.places)
    assert found.tokens[others].tolist() == tokens[others].tolist()
    seen = found.tokens[found.places]
    assert (seen[found.kinds == MASKED] == MASK).all()
    assert np.isin(seen[found.kinds == RANDOM], IDS).all()
    assert (seen == found.labels)[found.kinds == KEPT].all()
    assert [found.tokens.dtype, found.places.dtype, found.labels.dtype] == [np.int64] * 3
    assert found.kinds.dtype == np.uint8


@QUICK
@given(ROWS, st.floats(0, 1), st.integers(0, 1000))
def test_whole_words_are_chosen_with_all_their_tokens_or_none(words: np.ndarray, share: float, seed: int) -> None:
    _, found = mask(words, share, True, seed)
    chosen = np.isin(np.arange(len(words)), found.places)
    for word in set(words.tolist()) - {-1}:
        assert len(set(chosen[words == word].tolist())) == 1


@pytest.mark.parametrize("whole_words", [False, True])
def test_a_share_of_0_chooses_nothing_and_of_1_all_but_special_tokens(whole_words: bool) -> None:
    words = np.array([-1, 0, 0, 1, -1, 2, -1])
    assert mask(words, 0.0, whole_words)[1].places.tolist() == []
    assert mask(words, 1.0, whole_words)[1].places.tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize("whole_words", [False, True])
def test_how_much_is_drawn_is_left_neither_to_chance_nor_to_the_share(whole_words: bool) -> None:
    words = np.array([-1, *np.repeat(np.arange(40), 3), -1])
    after = []
    for share, ids in itertools.product((0.0, 0.3, 1.0), (IDS, IDS[:3], np.arange(30_000))):
        rng = np.random.default_rng(5)
        mask_tokens(words, form(words, share, whole_words, ids), rng)
        after.append(rng.bit_generator.state["state"]["state"])
    assert len(set(after)) == 1


@pytest.fixture(scope="module", params=[False, True], ids=["tokens", "whole words"])
def many(request: pytest.FixtureRequest) -> tuple[bool, np.ndarray, Masked]:
    """Whether words are chosen whole; words of 1 to 4 tokens; what became of them."""
    lengths = np.random.default_rng(1).integers(1, 5, N_TOKENS)
    words = np.repeat(np.arange(N_TOKENS), lengths)[:N_TOKENS]
    words[::12] = -1
    return request.param, words, mask(words, 0.15, request.param, seed=2)[1]


def test_the_share_chosen_is_the_one_asked_for(many: tuple[bool, np.ndarray, Masked]) -> None:
    whole_words, words, found = many
    units = words if whole_words else np.arange(len(words))
    n_chosen, n_units = len(set(units[found.places].tolist())), len(set(units[words >= 0].tolist()))
    assert stats.binomtest(n_chosen, n_units, 0.15).pvalue > 1e-4
    assert stats.binomtest(n_chosen, n_units, 0.14).pvalue < 1e-9  # the test is sharp enough


def test_of_the_chosen_80_10_and_10_percent_are_masked_random_and_kept(many: tuple[bool, np.ndarray, Masked]) -> None:
    _, _, found = many
    counts = np.bincount(found.kinds, minlength=3)
    assert stats.chisquare(counts, len(found.kinds) * np.array([0.8, 0.1, 0.1])).pvalue > 1e-4
    assert stats.chisquare(counts, len(found.kinds) * np.array([0.78, 0.11, 0.11])).pvalue < 1e-9


def test_neighbours_in_a_word_become_different_things_independently(many: tuple[bool, np.ndarray, Masked]) -> None:
    _, words, found = many
    beside = (np.diff(found.places) == 1) & (np.diff(words[found.places]) == 0)
    table = np.zeros((3, 3))
    np.add.at(table, (found.kinds[:-1][beside], found.kinds[1:][beside]), 1)
    assert table.sum() > 1000
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_random_tokens_are_uniform_over_the_ids_they_are_drawn_from(many: tuple[bool, np.ndarray, Masked]) -> None:
    _, _, found = many
    drawn = found.tokens[found.places][found.kinds == RANDOM]
    counts = [int((drawn == token).sum()) for token in IDS]
    assert sum(counts) == len(drawn) > 2000
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("whole_words", [False, True])
def test_counts_say_what_was_drawn(whole_words: bool) -> None:
    one = form(np.array([-1, *range(1000), -1]), 0.5, whole_words)
    rows = MaskedRows(lambda *_: np.arange(1000), 3, [], one, seed=0)
    kinds = np.concatenate([rows.masked(0, index)[1].kinds for index in range(3)])
    shares = [100 * (kinds == kind).mean() for kind in (MASKED, RANDOM, KEPT)]
    how = ", by whole words" if whole_words else ""
    assert rows.describe(3)[0] == (
        f"masking: {100 * len(kinds) / 3000:.1f} % of 3,000 tokens are predicted{how}; "
        f"of these {shares[0]:.1f} % are [MASK], {shares[1]:.1f} % random, {shares[2]:.1f} % kept"
    )
    nothing = replace(rows, form=form(np.full(1002, -1), 0.5, whole_words))
    assert nothing.describe(3)[0].startswith("masking: 0.0 % of 0 tokens")


def test_a_random_token_that_is_the_original_counts_as_random() -> None:
    tokens = np.full(5000, 7)
    one = form(np.arange(5000), 1.0, False, np.array([7]))
    found = mask_tokens(tokens, one, np.random.default_rng(3))
    assert 400 < (found.kinds == RANDOM).sum() < 600
    assert 800 < (found.tokens == 7).sum() < 1200
