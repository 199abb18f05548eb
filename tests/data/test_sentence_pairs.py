"""Next-sentence pairs: true ones go on, the others come from elsewhere, and each is a function of its number."""

import random
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from nlpstack.data import packing as module
from nlpstack.data.packing import Pair, SentencePairs, truncate
from nlpstack.data.shards import TokenShards
from nlpstack.errors import DataError
from tests.handmade import MakeShards

QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def texts(sizes: list[list[int]]) -> list[str]:
    """Documents of sentences with so many tokens; no two characters but the full stops are alike."""
    numbers = iter(range(500, 10_000))  # ids repeat after 1,000, which no test's text reaches
    return ["".join("".join(chr(next(numbers)) for _ in range(n - 1)) + "." for n in row) for row in sizes]


def sizes_of(shards: TokenShards) -> list[list[int]]:
    """Lengths of the sentences of each document, by a plain count."""
    found: list[list[int]] = []
    for start, stop, _ in shards.documents():
        ends = [end for end in shards.sentence_ends.tolist() if start < end <= stop]
        found.append([end - begin for begin, end in zip([start, *ends], ends, strict=False)])
    return found


@pytest.fixture
def shards(make_shards: MakeShards) -> TokenShards:
    """Nine documents of two to forty sentences, and three of one."""
    draw = random.Random(4)
    counts = [2, 1, 5, 1, 40, 3, 8, 2, 12, 1, 20, 6]
    return make_shards(
        texts([[draw.randint(2, 12) for _ in range(n)] for n in counts]), bos_id=None, eos_id=None, sentences=True
    )


def place(row: np.ndarray, shards: TokenShards) -> int:
    """Where a row of tokens stands in the text; tokens but full stops occur once."""
    whole = shards.read(0, len(shards))
    starts = [at for at in np.flatnonzero(whole == row[0]).tolist() if np.array_equal(whole[at : at + len(row)], row)]
    return starts[0] if len(starts) == 1 else -1


def document(at: int, shards: TokenShards) -> int:
    return int(np.searchsorted(shards.ends, at, side="right"))


def all_pairs(pairs: SentencePairs, n_epochs: int) -> list[tuple[int, Pair]]:
    return [(index, pairs.pair(epoch, index)) for epoch in range(n_epochs) for index in range(len(pairs))]


def same(a: Pair, b: Pair) -> bool:
    return np.array_equal(a.first, b.first) and np.array_equal(a.second, b.second) and a.is_next == b.is_next


# -- pairs -----------------------------------------------------------------------------------------------------------


def test_a_pair_depends_on_seed_epoch_and_index_alone(shards: TokenShards) -> None:
    one, other = SentencePairs(shards, 24, seed=7), SentencePairs(shards, 24, seed=7)
    numbers = [(epoch, index) for epoch in range(3) for index in range(len(one))]
    forwards = {number: one.pair(*number) for number in numbers}
    backwards = {number: other.pair(*number) for number in reversed(numbers)}
    assert all(same(forwards[number], backwards[number]) for number in numbers)
    for changed in (SentencePairs(shards, 24, seed=8).pair(0, 0), one.pair(1, 0), one.pair(0, 1)):
        assert not same(changed, forwards[0, 0])


def test_a_true_second_text_is_how_the_first_goes_on(shards: TokenShards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT_SHARE", 0.0)
    pairs = SentencePairs(shards, 500, seed=1)  # nothing is cut off
    found = [pair for _, pair in all_pairs(pairs, 60) if pair.is_next]
    assert len(found) > 200
    for first, second, _ in found:
        assert place(first, shards) + len(first) == place(second, shards)
        assert place(second, shards) in shards.sentence_ends
        assert document(place(first, shards), shards) == document(place(second, shards), shards)


def test_a_true_second_text_that_was_cut_follows_in_the_same_document(shards: TokenShards) -> None:
    n_cut = 0
    for _, (first, second, is_next) in all_pairs(SentencePairs(shards, 24, seed=1), 60):
        begin, at = place(first, shards), place(second, shards)
        if is_next and min(begin, at) >= 0:
            n_cut += begin + len(first) < at
            assert begin + len(first) <= at
            assert document(begin, shards) == document(at, shards)
    assert n_cut > 100


def test_true_pairs_hold_every_token_of_their_chunk_where_nothing_is_too_long(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHORT_SHARE", 0.0)
    shards = make_shards(texts([[4, 5, 6], [7, 8]]), bos_id=None, eos_id=None, sentences=True)
    pairs = SentencePairs(shards, 50, seed=1)
    true = [pair for _, pair in all_pairs(pairs, 40) if pair.is_next]
    joined = {tuple(np.concatenate((pair.first, pair.second)).tolist()) for pair in true}
    assert joined == {tuple(shards.read(0, 15).tolist()), tuple(shards.read(15, 30).tolist())}
    assert {len(pair.first) for pair in true} == {4, 9, 7}  # cut after any sentence but the last


def test_a_short_pair_is_made_of_no_more_sentences_than_fill_it(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHORT_SHARE", 1.0)
    shards = make_shards(texts([[5] * 40, [5] * 40]), bos_id=None, eos_id=None, sentences=True)
    pairs = SentencePairs(shards, 20, seed=9)
    seen = set()
    for index, (first, second, is_next) in all_pairs(pairs, 40):
        at = place(second, shards)
        if is_next and at >= 0:
            n_sentences = max(2, -(-(len(first) + len(second)) // 5))
            seen.add(n_sentences)
            assert at + len(second) <= pairs.starts[pairs.chunk_first[index]] + 5 * n_sentences
    assert seen == {2, 3, 4}


def test_another_second_text_comes_from_another_document(shards: TokenShards) -> None:
    pairs = SentencePairs(shards, 24, seed=2)
    owners = Counter()
    for index, (first, second, is_next) in all_pairs(pairs, 60):
        begin, at = place(first, shards), place(second, shards)
        if is_next or min(begin, at) < 0:
            continue
        assert document(begin, shards) == document(int(pairs.starts[pairs.chunk_first[index]]), shards)
        assert document(begin, shards) != document(at, shards)
        assert document(at + len(second) - 1, shards) == document(at, shards)
        owners[document(at, shards)] += 1
    assert set(owners) == {n for n, sizes in enumerate(sizes_of(shards)) if len(sizes) > 1}


def test_another_second_text_begins_at_any_sentence_of_any_chunk_of_other_documents(make_shards: MakeShards) -> None:
    shards = make_shards(texts([[6, 6, 6, 6], [6, 6], [6, 6, 6]]), bos_id=None, eos_id=None, sentences=True)
    pairs = SentencePairs(shards, 12, seed=3)  # two sentences a chunk; the last of the third shares one
    assert list(zip(pairs.chunk_first.tolist(), pairs.chunk_last.tolist(), strict=True)) == [
        (0, 2), (2, 4), (4, 6), (6, 8), (7, 9)
    ]  # fmt: skip
    starts = Counter()
    for epoch in range(12_000):
        # Tokens before a first text of 6 leave room for 6: one sentence.
        rng = np.random.default_rng(epoch)
        begin, end = pairs._elsewhere(0, 6, rng)
        starts[begin // 6] += 1
        assert end - begin == 6
    wanted = {4: 1, 5: 1, 6: 1, 7: 2, 8: 1}  # chunks of documents 1 and 2: sentences 4-5, 6-7 and 7-8
    assert set(starts) == set(wanted)
    shares = [12_000 * wanted[n] / 6 for n in sorted(wanted)]
    assert stats.chisquare([starts[n] for n in sorted(wanted)], shares).pvalue > 1e-4


def test_half_of_the_pairs_are_true(shards: TokenShards) -> None:
    pairs = SentencePairs(shards, 24, seed=5)
    found = [pair.is_next for _, pair in all_pairs(pairs, 200)]
    assert len(found) > 5000
    assert stats.binomtest(sum(found), len(found), 0.5).pvalue > 1e-4


def test_pairs_fill_their_length_but_a_tenth_that_are_short(make_shards: MakeShards) -> None:
    shards = make_shards(texts([[5] * 40, [5] * 40]), bos_id=None, eos_id=None, sentences=True)
    pairs = SentencePairs(shards, 20, seed=6)
    lengths = [len(pair.first) + len(pair.second) for _, pair in all_pairs(pairs, 600)]
    assert max(lengths) == 20
    # Of a short one the length is uniform in 2 to 20; whatever it is, chunks of 20 tokens fill it. Others may be
    # less than full where the other document's end comes first: those that begin with its last sentences.
    short = sum(length < 10 for length in lengths)
    assert stats.binomtest(short, len(lengths), 0.1 * 8 / 19).pvalue > 1e-4
    assert np.mean(np.array(lengths) == 20) > 0.8
    counts = np.bincount(lengths, minlength=21)[2:10]
    assert stats.chisquare(counts).pvalue > 1e-4


@QUICK
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=2, max_size=6),
    st.integers(2, 30),
    st.integers(0, 1000),
)
def test_no_text_is_empty_and_no_pair_longer_than_allowed(
    make_shards: MakeShards, sizes: list[list[int]], max_tokens: int, seed: int
) -> None:
    sizes = [*sizes, [2, 3], [4, 1]]
    shards = make_shards(texts(sizes), bos_id=None, eos_id=None, sentences=True)
    for _, pair in all_pairs(SentencePairs(shards, max_tokens, seed), 3):
        assert len(pair.first) > 0
        assert len(pair.second) > 0
        assert len(pair.first) + len(pair.second) <= max_tokens
        assert pair.first.dtype == pair.second.dtype == np.int64


# -- chunks ----------------------------------------------------------------------------------------------------------


def chunks_by_hand(sizes: list[list[int]], max_tokens: int) -> list[tuple[int, int]]:
    """(first sentence, the one after the last) of each chunk, sentence by sentence."""
    found, base = [], 0
    for row in sizes:
        at = 0
        while at < len(row) and len(row) >= 2:
            at = min(at, len(row) - 2)
            stop, n_tokens = at, 0
            while stop < len(row) and (n_tokens < max_tokens or stop < at + 2):
                n_tokens += row[stop]
                stop += 1
            found.append((base + at, base + stop))
            at = stop
        base += len(row)
    return found


@QUICK
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=2, max_size=6), st.integers(2, 40))
def test_chunks_cover_all_sentences_of_documents_with_two(
    make_shards: MakeShards, sizes: list[list[int]], max_tokens: int
) -> None:
    sizes = [*sizes, [2, 3], [4, 1]]
    shards = make_shards(texts(sizes), bos_id=None, eos_id=None, sentences=True)
    pairs = SentencePairs(shards, max_tokens, seed=0)
    assert sizes_of(shards) == sizes
    found = list(zip(pairs.chunk_first.tolist(), pairs.chunk_last.tolist(), strict=True))
    assert found == chunks_by_hand(sizes, max_tokens)
    assert len(pairs) == len(found)
    base, wanted = 0, set()
    for row in sizes:
        wanted |= set(range(base, base + len(row))) if len(row) > 1 else set()
        base += len(row)
    assert {sentence for first, last in found for sentence in range(first, last)} == wanted


def test_a_million_sentences_are_cut_in_seconds(shards: TokenShards) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 1_000_000)
    shards.sentence_ends = np.cumsum(lengths)
    shards.ends = shards.sentence_ends[19::20]
    started = time.process_time()
    pairs = SentencePairs(shards, 125, seed=0)
    assert time.process_time() - started < 5
    assert len(pairs) > 200_000


# -- truncation ------------------------------------------------------------------------------------------------------


def outcomes(first: list[int], second: list[int], target: int) -> dict[tuple[int, ...], Fraction]:
    """What a loop token by token (truncate_seq_pair of BERT's create_pretraining_data.py) leaves, how often."""
    found = {(0, len(first), 0, len(second)): Fraction(1)}  # from and to in each
    while any((b - a) + (d - c) > target for a, b, c, d in found):
        after: dict[tuple[int, ...], Fraction] = {}
        for (a, b, c, d), share in found.items():
            both = [(a + 1, b, c, d), (a, b - 1, c, d)] if b - a > d - c else [(a, b, c + 1, d), (a, b, c, d - 1)]
            for key in both:
                after[key] = after.get(key, Fraction(0)) + share / 2
        found = after
    return found


@pytest.mark.parametrize(
    ("n_first", "n_second", "target"), [(7, 3, 6), (3, 7, 7), (6, 6, 7), (6, 6, 6), (5, 6, 5), (1, 8, 2), (4, 4, 8)]
)
def test_texts_are_cut_as_a_loop_token_by_token_would(n_first: int, n_second: int, target: int) -> None:
    wanted = outcomes(list(range(n_first)), list(range(n_second)), target)
    rng = np.random.default_rng(11)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(8000):
        first, second = truncate((0, n_first), (0, n_second), target, rng)
        counts[(*first, *second)] += 1
    assert set(counts) == set(wanted)
    if len(wanted) > 1:
        shares = [8000 * float(wanted[key]) for key in sorted(wanted)]
        assert stats.chisquare([counts[key] for key in sorted(wanted)], shares).pvalue > 1e-4


@pytest.mark.parametrize("n_first", range(1, 9))
@pytest.mark.parametrize("n_second", range(1, 9))
def test_lengths_that_are_left_are_those_of_the_loop(n_first: int, n_second: int) -> None:
    rng = np.random.default_rng(0)
    for target in range(2, 17):
        first, second = truncate((10, 10 + n_first), (30, 30 + n_second), target, rng)
        a, b = n_first, n_second
        while a + b > target:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        assert (first[1] - first[0], second[1] - second[0]) == (a, b)
        assert 10 <= first[0] <= first[1] <= 10 + n_first
        assert 30 <= second[0] <= second[1] <= 30 + n_second


# -- the log, and errors ---------------------------------------------------------------------------------------------


def test_the_report_counts_pairs_documents_and_sentences(make_shards: MakeShards) -> None:
    shards = make_shards(texts([[4, 5, 6], [3], [30, 2]]), bos_id=None, eos_id=None, sentences=True)
    assert SentencePairs(shards, 20, seed=0).report() == [
        "next-sentence pairs: 2 an epoch, from 2 documents; 1 documents of fewer than two sentences are left out",
        "sentences: 5, of 9.4 tokens on average and at most 30",
        "1 sentences are longer than 20 tokens and will be cut",
    ]
    assert len(SentencePairs(shards, 30, seed=0).report()) == 2


@pytest.mark.parametrize("sizes", [[[4, 5, 6]], [[4, 5, 6], [3], [9]], [[4]]])
def test_fewer_than_two_documents_of_two_sentences_are_an_error_with_its_cure(
    make_shards: MakeShards, sizes: list[list[int]]
) -> None:
    shards = make_shards(texts(sizes), bos_id=None, eos_id=None, sentences=True)
    with pytest.raises(DataError, match="two documents") as caught:
        SentencePairs(shards, 20, seed=0)
    message = str(caught.value)
    assert f"{sum(len(row) > 1 for row in sizes)}, of {len(sizes)} in all" in message
    assert "--documents paragraphs" in message
    assert "--set task.nsp=false" in message
    assert "\n" not in message
