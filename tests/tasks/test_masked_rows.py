"""What a BERT reads: marked rows with hidden tokens, a pure function of (seed, epoch, index)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.data.batch import IGNORE_INDEX, Loader, Shuffled
from nlpstack.data.shards import TokenShards
from nlpstack.tasks.masked_lm import (
    MaskedRows,
    RowFormat,
    label_room,
    marked,
    one_hidden_each,
    packed_rows,
    pair_rows,
    stretches,
)
from tests.handmade import MakeShards

CLS, SEP, MASK, PAD = 1990, 1991, 1992, 0
SPECIAL = [CLS, SEP, MASK, PAD]
QUICK = settings(max_examples=25, deadline=None)


def word_ids(tokens: np.ndarray) -> np.ndarray:
    """Words of three tokens, wherever they stand; marks are in none."""
    return np.where(np.isin(tokens, SPECIAL), -1, np.arange(len(tokens)) // 3)


FORM = RowFormat(
    cls_id=CLS,
    sep_id=SEP,
    mask_id=MASK,
    pad_id=PAD,
    random_ids=np.arange(3, 1000),
    word_ids=word_ids,
    share=0.3,
    whole_words=False,
    length=24,
)


@pytest.fixture
def shards(make_shards: MakeShards) -> TokenShards:
    texts = [
        ". ".join("".join(chr(65 + (a * 7 + b * 3 + c) % 58) for c in range(4 + (a + b) % 9)) for b in range(6)) + "."
        for a in range(12)
    ]
    return make_shards(texts, bos_id=None, eos_id=None, sentences=True)


@pytest.fixture(params=["pairs", "packed", "stretches"])
def rows(request: pytest.FixtureRequest, shards: TokenShards) -> MaskedRows:
    make = {"pairs": pair_rows, "packed": packed_rows, "stretches": stretches}[request.param]
    return make(shards, FORM, 5)


def test_a_row_is_marked_as_a_bert_reads_it(rows: MaskedRows) -> None:
    for index in range(rows.n_rows):
        row = rows.row(0, index)
        marks = np.flatnonzero(np.isin(row.tokens, SPECIAL)).tolist()
        if row.label is None:
            assert marks == [0, len(row.tokens) - 1]
            assert (row.tokens[0], row.tokens[-1], row.n_first) == (CLS, SEP, len(row.tokens))
        else:
            assert marks == [0, row.n_first - 1, len(row.tokens) - 1]
            assert row.tokens[marks].tolist() == [CLS, SEP, SEP]
        assert 3 <= len(row.tokens) <= FORM.length


def test_a_pairs_second_text_follows_where_the_label_is_0_and_only_there(shards: TokenShards) -> None:
    rows = pair_rows(shards, FORM, 5)
    text = shards.read(0, len(shards))
    found = {0: 0, 1: 0}
    for index in range(rows.n_rows):
        row = rows.row(0, index)
        first, second = row.tokens[1 : row.n_first - 1], row.tokens[row.n_first : -1]
        joined = np.concatenate((first, second))
        starts = [at for at in range(len(text)) if np.array_equal(text[at : at + len(joined)], joined)]
        if row.label == 0 and len(joined) < FORM.length - 3:  # nothing was cut in the middle
            assert starts
        if row.label == 1:
            assert not starts
        found[row.label] += 1
    assert min(found.values()) > 0


def test_a_batch_holds_what_is_hidden_where_it_is_hidden(rows: MaskedRows) -> None:
    examples = [(0, index) for index in range(min(7, rows.n_rows))]
    batch = rows.batch(examples)
    counted = batch.labels["mlm"] != IGNORE_INDEX
    assert batch.n_targets["mlm"] == counted.sum() > 0
    originals = [rows.row(*example).tokens for example in examples]
    flat = batch.tokens.flatten()
    seen: list[int] = []
    for place, label in zip(batch.places[counted].tolist(), batch.labels["mlm"][counted].tolist(), strict=True):
        row, column = divmod(place, FORM.length)
        assert originals[row][column] == label
        seen.append(place)
    assert seen == sorted(set(seen))
    others = [i for i in range(len(flat)) if i not in set(seen)]
    for place in others:
        row, column = divmod(place, FORM.length)
        assert flat[place] == (originals[row][column] if column < len(originals[row]) else PAD)
    lengths = [len(original) for original in originals]
    assert batch.n_tokens == sum(lengths)
    if batch.mask is not None:
        assert batch.mask.sum(dim=1).tolist() == lengths
    else:
        assert set(lengths) == {FORM.length}


def test_segments_and_next_labels_are_those_of_the_rows(shards: TokenShards) -> None:
    rows = pair_rows(shards, FORM, 5)
    batch = rows.batch([(2, index) for index in range(6)])
    for number in range(6):
        row = rows.row(2, number)
        assert batch.labels["nsp"][number] == row.label
        ones = batch.segments[number].nonzero()[:, 0].tolist()
        assert ones == list(range(row.n_first, len(row.tokens)))
    assert batch.n_targets["nsp"] == 6


@QUICK
@given(st.integers(0, 50), st.integers(0, 10), st.integers(1, 5), st.integers(1, 5))
def test_the_batch_of_a_step_is_the_same_whoever_asks_for_it_and_when(
    shards_cache: MaskedRows, start: int, back: int, batch_size: int, micro_batch: int
) -> None:
    """An unbroken run, a resumed one, and one cut into micro-batches see the same rows, the same tokens hidden."""

    def loader(micro: int) -> Loader:
        return Loader(
            Shuffled(shards_cache.n_rows, batch_size=batch_size, seed=9), shards_cache.batch, micro_batch=micro
        )

    micro = min(micro_batch, batch_size)
    whole = loader(batch_size).micro_batches(start)[0]
    later = loader(micro)
    for step in (start + back, max(0, start - back)):
        later.micro_batches(step)
    parts = next(iter(later.steps(start, start + 1)))
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    labels = torch.cat([part.labels["mlm"][part.labels["mlm"] != IGNORE_INDEX] for part in parts])
    assert torch.equal(labels, whole.labels["mlm"][whole.labels["mlm"] != IGNORE_INDEX])
    assert torch.equal(torch.cat([part.labels["nsp"] for part in parts]), whole.labels["nsp"])


@pytest.fixture(scope="module")
def shards_cache(tmp_path_factory: pytest.TempPathFactory) -> MaskedRows:
    from nlpstack.data.readers import Piece
    from nlpstack.data.shards import ShardSpec, load_or_tokenize
    from tests.handmade import cut, encode

    texts = [f"{'abcdefg'[: 2 + i % 5]}. {'hijklmn' * (1 + i % 4)}. {'opq' * (i % 6)}." for i in range(30)]
    spec = ShardSpec(split_key="k", tokenizer_hash="t", vocab_size=2000, bos_id=None, eos_id=None, sentences="stops")
    pieces = [Piece(text, last=True) for text in texts]
    shards = load_or_tokenize(
        lambda: pieces, encode, spec, tmp_path_factory.mktemp("cache"), lambda _: None, segment=cut
    )
    return pair_rows(shards, FORM, 5)


def test_tokens_are_hidden_anew_in_each_epoch(rows: MaskedRows) -> None:
    first, second = (rows.masked(epoch, 0)[1].places.tolist() for epoch in (0, 1))
    again = rows.masked(0, 0)[1].places.tolist()
    assert first == again
    assert first != second


def test_stretches_are_the_whole_text_once(shards: TokenShards) -> None:
    rows = stretches(shards, FORM, 5)
    joined = np.concatenate([rows.row(0, index).tokens[1:-1] for index in range(rows.n_rows)])
    assert np.array_equal(joined, shards.read(0, len(shards)))


def test_hidden_one_at_a_time_each_token_is_hidden_once() -> None:
    plain = marked(np.arange(10, 15), FORM).tokens
    rows = one_hidden_each(plain, 1, 6, FORM).tokens.numpy()
    assert len(rows) == 5
    for number, row in enumerate(rows):
        assert np.flatnonzero(row[: len(plain)] != plain).tolist() == [number + 1]
        assert row[number + 1] == MASK


@pytest.mark.parametrize("whole_words", [False, True])
def test_there_is_room_for_the_labels_so_that_shapes_stay(shards: TokenShards, whole_words: bool) -> None:
    form = replace(FORM, whole_words=whole_words)
    rows = packed_rows(shards, form, 5)
    room = label_room(8, FORM.length, FORM.share, whole_words=whole_words)
    for epoch in range(40):
        batch = rows.batch([(epoch, index % rows.n_rows) for index in range(8)])
        assert batch.labels["mlm"].shape == batch.places.shape == (room,)


def test_the_log_says_what_was_hidden_and_padded(rows: MaskedRows) -> None:
    masking, padding = rows.describe(10_000)
    n_tokens = sum(len(rows.row(0, index).tokens) for index in range(rows.n_rows))
    assert padding == f"padding: {1 - n_tokens / (rows.n_rows * FORM.length):.1%} of {rows.n_rows:,} rows"
    n_hidden = sum(len(rows.masked(0, index)[1].places) for index in range(rows.n_rows))
    n_marks = sum(np.isin(rows.row(0, index).tokens, SPECIAL).sum() for index in range(rows.n_rows))
    assert f"{100 * n_hidden / (n_tokens - n_marks):.1f} % of {n_tokens - n_marks:,} tokens" in masking
