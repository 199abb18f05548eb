"""Scores of masked tokens and next sentences: sums over counts, each of the two tasks over its own."""

import math

import numpy as np
import pytest

from nlpstack.errors import DataError
from nlpstack.metrics import compute
from nlpstack.metrics.language_model import MaskedLMScores


def filled(rows: list[tuple[tuple[float, int, int], tuple[float, int, int]]]) -> MaskedLMScores:
    metric = MaskedLMScores()
    for mlm, nsp in rows:
        metric.update(mlm, nsp)
    return metric


def test_each_loss_is_divided_by_its_own_count() -> None:
    scores = compute(filled([((6.0, 3, 1), (0.5, 1, 1)), ((2.0, 1, 1), (0.9, 1, 0))]), "s", n_resamples=0, seed=0)
    assert list(scores) == ["loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"]
    values = {name: score.value for name, score in scores.items()}
    assert values == pytest.approx(
        {"mlm_loss": 2.0, "mlm_accuracy": 0.5, "nsp_loss": 0.7, "nsp_accuracy": 0.5, "loss": 2.7}
    )
    assert {name: score.n for name, score in scores.items()} == {
        **{"loss": 4, "mlm_loss": 4, "mlm_accuracy": 4},
        **{"nsp_loss": 2, "nsp_accuracy": 2},
    }
    assert math.isnan(scores["loss"].low)


def test_without_pairs_the_loss_is_that_of_the_masked_tokens() -> None:
    metric = MaskedLMScores()
    metric.update((6.0, 3, 1))
    scores = compute(metric, "s", n_resamples=0, seed=0)
    assert list(scores) == ["loss", "mlm_loss", "mlm_accuracy"]
    assert scores["loss"].value == scores["mlm_loss"].value == 2.0


def test_pseudo_perplexity_is_exp_of_the_mean_loss_of_tokens_hidden_alone() -> None:
    metric = filled([((6.0, 3, 1), (0.0, 0, 0))])
    metric.add_stretch(10.0, 4)
    metric.add_stretch(2.0, 2)
    score = compute(metric, "s", n_resamples=10, seed=0)["pseudo_perplexity"]
    assert score.value == pytest.approx(math.exp(2.0))
    assert score.n == 6
    assert "|unit:stretch|" in score.signature


def test_intervals_resample_examples() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random(1500) < 0.6
    metric = filled([((1.0, 1, 0), (0.5, 1, int(hit))) for hit in hits])
    score = compute(metric, "s", n_resamples=2000, seed=1)["nsp_accuracy"]
    share = hits.mean()
    spread = 1.96 * math.sqrt(share * (1 - share) / len(hits))  # of a binomial share
    assert score.value == pytest.approx(share)
    assert score.low == pytest.approx(share - spread, abs=0.004)
    assert score.high == pytest.approx(share + spread, abs=0.004)
    assert score.signature == "s|unit:example|resamples:2000|seed:1"


def test_nothing_hidden_is_nothing_to_score() -> None:
    with pytest.raises(DataError, match="no token of the split was hidden"):
        compute(filled([((0.0, 0, 0), (0.5, 1, 1))]), "s", n_resamples=0, seed=0)
