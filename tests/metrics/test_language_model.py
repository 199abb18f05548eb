"""Loss, perplexities and bits per byte follow their formulas; their intervals hold the truth as often as they say."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.errors import DataError
from nlpstack.metrics import Score, Units, compute, drawn_scores, mean_formula, percentiles, resamples
from nlpstack.metrics.language_model import LanguageModelScores

QUICK = settings(max_examples=40, deadline=None)  # deadlines fail on a busy machine


class Scored(NamedTuple):
    """One window as a task scores it."""

    document: int
    nll: float
    tokens: int
    n_bytes: int


def scores(
    windows: Sequence[Scored], words: dict[int, int], *, n_targets: dict[int, int] | None = None, n_resamples: int = 50
) -> dict[str, Score]:
    metric = LanguageModelScores()
    scored = {document: sum(w.tokens for w in windows if w.document == document) for document in words}
    for window in windows:
        metric.update(*window, (words[window.document], (n_targets or scored)[window.document]))
    return compute(metric, "sig", n_resamples=n_resamples, seed=3)


def corpus(n_documents: int, rng: np.random.Generator) -> tuple[list[Scored], dict[int, int]]:
    """Documents of one to four windows, some harder than others, in an order that mixes them."""
    windows = []
    for document in range(n_documents):
        hardness = rng.gamma(4.0)
        for _ in range(rng.integers(1, 5)):
            tokens = int(rng.integers(5, 40))
            windows.append(Scored(document, float(rng.gamma(tokens) * hardness / 4), tokens, 4 * tokens + 1))
    rng.shuffle(windows)  # type: ignore[arg-type]
    words = {document: int(rng.integers(3, 60)) for document in range(n_documents)}
    return windows, words


# -- values ----------------------------------------------------------------------------------------------------------


@QUICK
@given(st.integers(1, 25), st.integers(0, 10_000))
def test_scores_are_their_formulas_over_the_whole_corpus(n_documents: int, seed: int) -> None:
    windows, words = corpus(n_documents, np.random.default_rng(seed))
    nll = math.fsum(w.nll for w in windows)
    n_tokens, n_bytes, n_words = sum(w.tokens for w in windows), sum(w.n_bytes for w in windows), sum(words.values())
    found = scores(windows, words, n_resamples=0)
    wanted = {
        "loss": (nll / n_tokens, n_tokens),
        "perplexity": (math.exp(nll / n_tokens), n_tokens),
        "word_perplexity": (math.exp(nll / n_words), n_words),
        "bits_per_byte": (nll / math.log(2) / n_bytes, n_bytes),
    }
    assert found.keys() == wanted.keys()
    for name, (value, n) in wanted.items():
        assert found[name].value == pytest.approx(value, rel=1e-12)
        assert found[name].n == n


def test_the_mean_is_over_tokens_not_over_windows() -> None:
    found = scores([Scored(0, 10.0, 10, 40), Scored(1, 10.0, 1, 4)], {0: 5, 1: 1})
    assert found["loss"].value == pytest.approx(20 / 11)


def test_of_a_document_scored_in_part_the_same_part_of_its_words_counts() -> None:
    whole = scores([Scored(0, 30.0, 10, 40), Scored(0, 30.0, 10, 40)], {0: 12})
    part = scores([Scored(0, 30.0, 10, 40)], {0: 12}, n_targets={0: 20})
    assert part["word_perplexity"].value == pytest.approx(whole["word_perplexity"].value)
    assert (whole["word_perplexity"].n, part["word_perplexity"].n) == (12, 6)


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        compute(LanguageModelScores(), "", n_resamples=10, seed=0)


def test_a_text_without_words_has_no_word_perplexity() -> None:
    found = scores([Scored(0, 3.0, 3, 3), Scored(0, 1.0, 3, 3)], {0: 0})
    assert not math.isfinite(found["word_perplexity"].value)
    assert found["perplexity"].value == pytest.approx(math.exp(4 / 6))


# -- the unit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_documents", "unit"), [(1, "window"), (9, "window"), (10, "document"), (40, "document")])
def test_documents_are_resampled_where_there_are_enough_else_windows(n_documents: int, unit: str) -> None:
    found = scores(*corpus(n_documents, np.random.default_rng(1)), n_resamples=7)
    assert {score.signature for score in found.values()} == {f"sig|unit:{unit}|resamples:7|seed:3"}


def test_windows_of_a_document_move_together() -> None:
    """Of documents without difference among them no resample differs, however their windows do."""
    windows = [Scored(d, nll, 10, 40) for d in range(12) for nll in (1.0, 30.0)]
    found = scores(windows, dict.fromkeys(range(12), 5), n_resamples=200)
    for score in found.values():
        assert score.low == pytest.approx(score.value)
        assert score.high == pytest.approx(score.value)
    few = scores([w for w in windows if w.document < 5], dict.fromkeys(range(5), 5), n_resamples=200)
    assert few["loss"].low < few["loss"].value < few["loss"].high


def test_units_are_the_sums_of_their_documents_in_any_order() -> None:
    windows, words = corpus(15, np.random.default_rng(5))
    in_order = scores(sorted(windows, key=lambda w: w.document), words, n_resamples=100)
    mixed = scores(windows, words, n_resamples=100)
    for name, score in in_order.items():
        assert mixed[name][:3] == pytest.approx(score[:3], rel=1e-9)


# -- intervals -------------------------------------------------------------------------------------------------------


def test_intervals_of_ninety_five_percent_hold_the_truth_about_as_often() -> None:
    rng = np.random.default_rng(7)
    truth = 2.0  # mean loss a token
    held = dict.fromkeys(("loss", "perplexity", "bits_per_byte"), 0)
    for _ in range(200):
        lengths = rng.integers(20, 60, size=60)
        hardness = rng.gamma(16.0, truth / 16, size=60)  # does not depend on the length, so the ratio's mean is `truth`
        windows = [
            Scored(d, float(h * n), int(n), 3 * int(n)) for d, (h, n) in enumerate(zip(hardness, lengths, strict=True))
        ]
        found = scores(windows, dict.fromkeys(range(60), 5), n_resamples=300)
        wanted = {"loss": truth, "perplexity": math.exp(truth), "bits_per_byte": truth / 3 / math.log(2)}
        for name in held:
            held[name] += found[name].low <= wanted[name] <= found[name].high
    for name, count in held.items():
        assert 0.90 <= count / 200 <= 0.99, name


def test_intervals_are_a_function_of_the_seed() -> None:
    windows, words = corpus(20, np.random.default_rng(2))
    assert scores(windows, words, n_resamples=100) == scores(windows, words, n_resamples=100)
    one, same, other = (np.concatenate(list(resamples(12, 50, seed))) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_intervals_hold_the_value_and_grow_with_fewer_documents() -> None:
    rng = np.random.default_rng(3)
    windows, words = corpus(200, rng)
    wide = scores([w for w in windows if w.document < 20], words, n_resamples=300)
    narrow = scores(windows, words, n_resamples=300)
    for found in (wide, narrow):
        assert all(score.low < score.value < score.high for score in found.values())
    assert narrow["loss"].high - narrow["loss"].low < wide["loss"].high - wide["loss"].low


def test_without_resamples_there_is_no_interval() -> None:
    found = scores(*corpus(20, np.random.default_rng(1)), n_resamples=0)
    assert all(math.isnan(score.low) and math.isnan(score.high) for score in found.values())
    assert all(math.isfinite(score.value) for score in found.values())
    assert all(math.isnan(bound) for bound in percentiles(np.zeros(0)))


def test_a_single_unit_has_no_interval() -> None:
    found = scores([Scored(0, 3.0, 3, 9)], {0: 2})
    assert all(math.isnan(score.low) and math.isnan(score.high) for score in found.values())


def test_a_resample_draws_as_many_units_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.concatenate(list(resamples(30, 2000, 1)))
    assert draws.shape == (2000, 30)
    counts = np.array([np.bincount(row, minlength=30) for row in draws])
    assert counts.mean(axis=0) == pytest.approx(np.ones(30), rel=0.2)
    assert counts.var(axis=0) == pytest.approx(np.full(30, 1 - 1 / 30), rel=0.25)  # of a multinomial
    monkeypatch.setattr("nlpstack.metrics._DRAWS_AT_ONCE", 64)  # drawn in parts, the draws are the same
    assert np.array_equal(np.concatenate(list(resamples(30, 2000, 1))), draws)


def test_equal_units_are_drawn_as_if_they_were_none() -> None:
    rng = np.random.default_rng(4)
    rows = np.column_stack((rng.integers(0, 3, size=(400, 1)), np.ones(400)))
    equal, told = (
        Units(mean_formula, "x", one, {"name": "m"}) for one in (rows, rows + rng.normal(0, 1e-12, (400, 2)))
    )
    few, many = (drawn_scores([part], n_resamples=50, seed=2)["m"] for part in (equal, told))
    assert few[0] == many[0] == 400
    np.testing.assert_allclose(few[1], many[1], rtol=1e-9)
