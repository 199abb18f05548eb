"""Scores of labels and numbers against scikit-learn and scipy, and their intervals against resampled lists."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_recall_fscore_support

from nlpstack.errors import DataError
from nlpstack.metrics import Score, compute, resamples
from nlpstack.metrics.classification import LabelScores

QUICK = settings(max_examples=40, deadline=None)  # deadlines fail on a busy machine

LABELS = ["a", "b", "c", "d", "never"]

AVERAGED = [f"{part}_{average}" for part in ("precision", "recall", "f1") for average in ("micro", "macro", "weighted")]

Lists = tuple[list[Any], list[Any]]  # predicted, gold


def fill_label(lists: Lists) -> LabelScores:
    metric = LabelScores(LABELS)
    for predicted, gold in zip(*lists, strict=True):
        metric.update(predicted, gold, nll=predicted + 0.5)
    return metric


def label_scores(lists: Lists, *, n_resamples: int = 0, seed: int = 0) -> dict[str, Score]:
    return compute(fill_label(lists), "s", n_resamples=n_resamples, seed=seed)


def fill_multi_label(lists: Lists) -> LabelScores:
    metric = LabelScores(LABELS, single=False)
    for predicted, gold in zip(*lists, strict=True):
        metric.update(predicted, gold, nll=float(sum(predicted)))
    return metric


def multi_label_scores(lists: Lists, *, n_resamples: int = 0, seed: int = 0) -> dict[str, Score]:
    return compute(fill_multi_label(lists), "s", n_resamples=n_resamples, seed=seed)


def fill_regression(lists: Lists) -> LabelScores:
    metric = LabelScores()
    for predicted, gold in zip(*lists, strict=True):
        metric.update(predicted, gold)
    return metric


def regression_scores(lists: Lists, *, n_resamples: int = 0, seed: int = 0) -> dict[str, Score]:
    return compute(fill_regression(lists), "s", n_resamples=n_resamples, seed=seed)


def averages(predicted: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    scores = {}
    for average in ("micro", "macro", "weighted"):
        parts = precision_recall_fscore_support(gold, predicted, average=average, zero_division=0)[:3]
        scores |= {f"{part}_{average}": value for part, value in zip(("precision", "recall", "f1"), parts, strict=True)}
    return scores


def expected_label_scores(lists: Lists) -> dict[str, float]:
    predicted, gold = (np.array(column) for column in lists)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that are in the predictions only
        balanced = balanced_accuracy_score(gold, predicted)
    own = {"loss": np.mean(predicted + 0.5), "accuracy": accuracy_score(gold, predicted), "balanced_accuracy": balanced}
    return own | averages(predicted, gold)


def expected_multi_label_scores(lists: Lists) -> dict[str, float]:
    predicted, gold = (np.array(column) for column in lists)
    own = {"loss": np.mean(predicted.sum(axis=1)), "accuracy": accuracy_score(gold, predicted)}
    return own | averages(predicted, gold)


def expected_regression_scores(lists: Lists) -> dict[str, float]:
    x, y = (np.array(column) for column in lists)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lists that are constant
        return {
            "loss": float(np.mean((x - y) ** 2)),
            "pearson": float(pearsonr(x, y).statistic),
            "spearman": float(spearmanr(x, y).statistic),
        }


def two_columns(entry: st.SearchStrategy[Any], *, at_least: int = 1) -> st.SearchStrategy[Lists]:
    rows = st.lists(st.tuples(entry, entry), min_size=at_least, max_size=30)
    return rows.map(lambda pairs: ([p for p, _ in pairs], [g for _, g in pairs]))


def values(scores: dict[str, Score]) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


@QUICK
@given(two_columns(st.integers(0, 3)))
def test_scores_of_labels_are_those_of_scikit_learn(lists: Lists) -> None:
    scores = label_scores(lists)
    assert sorted(scores) == sorted(["loss", "accuracy", "balanced_accuracy", *AVERAGED])
    assert values(scores) == pytest.approx(expected_label_scores(lists))


@QUICK
@given(two_columns(st.tuples(*[st.booleans()] * 4, st.just(False))))
def test_scores_of_many_labels_an_example_are_those_of_scikit_learn(lists: Lists) -> None:
    assert values(multi_label_scores(lists)) == pytest.approx(expected_multi_label_scores(lists))


@QUICK
@given(two_columns(st.integers(0, 5).map(lambda i: i / 5), at_least=2))
def test_correlations_are_those_of_scipy_with_ties(lists: Lists) -> None:
    assert values(regression_scores(lists)) == pytest.approx(expected_regression_scores(lists), nan_ok=True, abs=1e-9)


def test_correlations_are_those_of_scipy_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    x = 1e6 + rng.normal(size=200)
    lists = x.tolist(), (x + rng.normal(size=200)).tolist()
    assert values(regression_scores(lists)) == pytest.approx(expected_regression_scores(lists))


def test_labels_that_never_occur_do_not_count_where_each_example_has_one() -> None:
    scores = values(label_scores(([0, 0, 1, 2], [0, 0, 1, 1])))
    assert scores["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)  # a and b: c is in the predictions only
    assert scores["recall_macro"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert scores["precision_macro"] == pytest.approx((1 + 1 + 0) / 3)
    assert scores["f1_micro"] == scores["accuracy"] == 3 / 4


def test_labels_that_never_occur_count_where_an_example_may_have_many() -> None:
    yes = [True, False, False, False, False]
    scores = values(multi_label_scores(([yes], [yes])))
    assert scores["f1_macro"] == pytest.approx(1 / 5)
    assert scores["f1_micro"] == scores["f1_weighted"] == scores["accuracy"] == 1.0


def test_examples_without_any_label_are_right_if_none_is_predicted() -> None:
    scores = values(multi_label_scores(([[False] * 5], [[False] * 5])))
    assert scores.pop("accuracy") == 1.0
    assert set(scores.values()) == {0.0}


@pytest.mark.parametrize(
    "lists", [([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]), ([2.0], [1.0])]
)
def test_a_correlation_with_a_constant_is_nan(lists: Lists) -> None:
    scores = regression_scores(lists, n_resamples=10)
    for name in ("pearson", "spearman"):
        assert all(math.isnan(number) for number in scores[name][:3])
    assert math.isfinite(scores["loss"].value)


def test_a_correlation_with_nan_is_nan() -> None:
    scores = regression_scores(([1.0, math.nan, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]))
    assert all(math.isnan(score.value) for score in scores.values())


def labels(rng: np.random.Generator) -> Lists:
    gold = rng.integers(0, 4, size=60)
    return np.where(rng.random(60) < 0.5, gold, rng.integers(0, 4, size=60)).tolist(), gold.tolist()


def indicators(rng: np.random.Generator) -> Lists:
    gold = rng.random((60, 5)) < 0.3
    return (gold ^ (rng.random((60, 5)) < 0.2)).tolist(), gold.tolist()


def numbers(rng: np.random.Generator) -> Lists:
    gold = rng.integers(0, 6, size=60) / 5
    return (gold + rng.normal(size=60).round(1)).tolist(), gold.tolist()


@pytest.mark.parametrize(
    ("make", "fill", "score", "expected"),
    [
        (labels, fill_label, label_scores, expected_label_scores),
        (indicators, fill_multi_label, multi_label_scores, expected_multi_label_scores),
        (numbers, fill_regression, regression_scores, expected_regression_scores),
    ],
)
def test_intervals_are_those_of_resampled_lists(
    make: Callable[[np.random.Generator], Lists],
    fill: Callable[[Lists], LabelScores],
    score: Callable[..., dict[str, Score]],
    expected: Callable[[Lists], dict[str, float]],
) -> None:
    lists = make(np.random.default_rng(2))
    scores = score(lists, n_resamples=2000, seed=4)
    assert scores == score(lists, n_resamples=2000, seed=4)
    assert scores != score(lists, n_resamples=2000, seed=5)

    metric = fill(lists)
    counts = np.array([np.bincount(row, minlength=60) for row in np.concatenate(list(resamples(60, 2000, 4)))])
    drawn = {k: v for part in metric.parts() for k, v in part.scores(part.rows, counts).items()}
    for i, row in enumerate(counts[:80]):
        wanted = expected(tuple([column[k] for k in np.repeat(np.arange(60), row)] for column in lists))  # type: ignore[arg-type]
        assert {name: values[i] for name, (values, _) in drawn.items()} == pytest.approx(wanted)
    for name, found in scores.items():
        assert (found.low, found.high) == pytest.approx(tuple(np.percentile(drawn[name][0], [2.5, 97.5])))
        assert found.low < found.value < found.high
        assert found.n == 60
        assert found.signature == "s|unit:example|resamples:2000|seed:4"


def test_of_one_example_there_is_no_interval() -> None:
    score = label_scores(([1], [1]), n_resamples=10)["accuracy"]
    assert score.value == 1.0
    assert math.isnan(score.low)
    assert math.isnan(score.high)


@pytest.mark.parametrize("score", [label_scores, multi_label_scores, regression_scores])
def test_no_examples_are_nothing_to_score(score: Callable[[Lists], dict[str, Score]]) -> None:
    with pytest.raises(DataError, match="nothing to score: the split has no examples"):
        score(([], []))


@pytest.mark.parametrize(("predicted", "gold"), [(5, 0), (0, 5), (-1, 0), (0, -100)])
def test_a_label_that_is_not_there_is_refused(predicted: int, gold: int) -> None:
    with pytest.raises(AssertionError):
        LabelScores(LABELS).update(predicted, gold, 0.0)
