"""Filters and draws."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from nlpstack.decode import Sampling
from nlpstack.decode.next_token import (
    TokenRules,
    apply_temperature,
    choose,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    probabilities,
    row_generator,
)
from nlpstack.errors import ModelError
from tests.decode.fakes import by_definition, letter_model


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(8, 3000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1.5, 1.2, 8)[:, None]


def test_temperature_matches_transformers(logits: torch.Tensor) -> None:
    for temperature in (0.3, 1.0, 2.5):
        theirs = TemperatureLogitsWarper(temperature)(None, logits).softmax(-1)
        torch.testing.assert_close(apply_temperature(logits, temperature).softmax(-1), theirs)


@pytest.mark.parametrize("k", [1, 7, 2999, 3000, 10_000])
def test_top_k_matches_transformers_ties_included(logits: torch.Tensor, k: int) -> None:
    tied = logits.round(decimals=1)
    for scores in (logits, tied):
        assert torch.equal(keep_top_k(scores, k), TopKLogitsWarper(k)(None, scores))


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_matches_transformers(logits: torch.Tensor, p: float) -> None:
    logits = logits.double()  # they add up from the other end, which in fp32 rounds to another set
    assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits))


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([[0.2, 0.5, 0.25, 0.05], [0.25, 0.25, 0.25, 0.25]]).log()
    for p, kept in [(0.4, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.96, 4), (1.0, 4)]:
        assert keep_top_p(logits, p)[0].isfinite().sum() == kept, p
    assert keep_top_p(logits, 0.5)[1].isfinite().tolist() == [True, True, False, False]  # of equals, the first
    assert keep_top_p(torch.zeros(1, 5000), 0.5).isfinite().sum() == 2500  # more than its short cut looks at


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.02, 0.5, 1.0])
def test_min_p_matches_transformers(logits: torch.Tensor, p: float) -> None:
    for scores in (logits, logits.round(decimals=1), keep_top_k(logits, 5)):
        assert torch.equal(keep_min_p(scores, p), MinPLogitsWarper(p)(None, scores))


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest() -> None:
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]], dtype=torch.float64).log()
    for p, kept in [(0.2, [0, 1, 2, 3]), (0.3, [0, 2, 3]), (0.6, [0, 2]), (0.8, [0]), (1.0, [0])]:
        assert keep_min_p(logits, p)[0].isfinite().nonzero()[:, 0].tolist() == kept, p


def test_filters_come_in_the_order_of_transformers(logits: torch.Tensor) -> None:
    logits = logits.double()
    warpers = [TemperatureLogitsWarper(1.7), TopKLogitsWarper(30), TopPLogitsWarper(0.8), MinPLogitsWarper(0.3)]
    theirs = logits
    for warper in warpers:
        theirs = warper(None, theirs)
    ours = probabilities(logits, Sampling(temperature=1.7, top_k=30, top_p=0.8, min_p=0.3))
    torch.testing.assert_close(ours, theirs.softmax(-1))
    assert torch.equal(ours > 0, theirs.isfinite())


def test_all_filters_leave_something_to_draw(logits: torch.Tensor) -> None:
    for temperature in (1e-300, 1e-6, 1e6):
        chances = probabilities(logits, Sampling(temperature=temperature, top_k=40, top_p=0.5, min_p=0.9))
        torch.testing.assert_close(chances.sum(-1), torch.ones(8, dtype=torch.float64))
    coldest = probabilities(logits, Sampling(temperature=1e-300))
    assert torch.equal(coldest.argmax(-1), logits.argmax(-1))
    assert torch.equal(coldest.max(-1).values, torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.15},
        {"top_k": 9, "top_p": 0.7},
        {"repetition_penalty": 1.8},
        {"frequency_penalty": 0.5, "presence_penalty": -0.4, "min_p": 0.05},
        {"logit_bias": {3: 1.5, 8: -0.5}, "banned": (11,), "temperature": 1.3},
    ],
)
def test_draws_follow_the_distribution(options: dict) -> None:
    """Pearson's chi-squared against probabilities worked out here, token by token, from the definitions."""
    sampling, n_draws, history = Sampling(**options), 100_000, [1, 5, 5, 5, 9]
    model = letter_model(12)  # with the special tokens, 16
    logits = torch.randn(1, 16, generator=torch.Generator().manual_seed(3)) * 1.5
    allowed = by_definition(logits[0].tolist(), sampling, [], history, model.tokenizer)
    expected = np.exp(np.array(allowed) / sampling.temperature)
    order = np.argsort(-expected)
    expected[order[sampling.top_k or 16 :]] = 0
    expected /= expected.sum()
    needed = next(n for n in range(1, 17) if n == 16 or expected[order[:n]].sum() >= sampling.top_p)
    expected[order[needed:]] = 0
    expected[expected < sampling.min_p * expected.max()] = 0
    expected /= expected.sum()

    generator, rows = row_generator(0, 0), 1000
    seen = torch.tensor(history).expand(rows, -1)
    many = TokenRules(sampling, model.tokenizer, model).apply(logits.expand(rows, -1), seen, seen)
    drawn = [token for _ in range(n_draws // rows) for token in choose(many, sampling, [generator] * rows)]
    counts = np.bincount(drawn, minlength=16)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], expected[possible] * n_draws).pvalue > 0.01


def test_a_token_without_a_chance_is_never_drawn() -> None:

    chances = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]])
    drawn = draw(chances.expand(20_000, -1), [row_generator(1, 1)] * 20_000)
    assert set(drawn.tolist()) == {1, 3}


def test_the_ends_of_the_unit_interval_draw_possible_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    chances = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]], dtype=torch.float64)
    for uniform, token in [(0.0, 1), (1.0, 3)]:
        monkeypatch.setattr(torch, "rand", lambda *_, u=uniform, **__: torch.tensor([u], dtype=torch.float64))
        assert draw(chances, [row_generator(0)]).tolist() == [token]


def test_temperature_zero_is_greedy(logits: torch.Tensor) -> None:
    expected = logits.argmax(-1).tolist()
    for sampling in (Sampling(greedy=True), Sampling(temperature=0), Sampling(temperature=0, top_k=3)):
        assert choose(logits, sampling, []) == expected


def test_rows_have_streams_of_their_own() -> None:
    first = [torch.rand(4, generator=row_generator(*key)).tolist() for key in [(0, 0), (0, 1), (1, 0), (1, 1), (10,)]]
    assert len({tuple(numbers) for numbers in first}) == 5
    assert torch.rand(4, generator=row_generator(0, 1)).tolist() == first[1]
    big = [torch.rand(4, generator=row_generator(seed)).tolist() for seed in (-1, 2**32 + 10, 2**80)]
    assert len({tuple(numbers) for numbers in [*big, first[4]]}) == 4


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_refused(logits: torch.Tensor, fault: float) -> None:
    logits[3, 17] = fault
    for sampling in (Sampling(greedy=True), Sampling()):
        with pytest.raises(ModelError, match="not finite"):
            choose(logits, sampling, [row_generator(0, row) for row in range(8)])
