"""A thousand generated corpora against seqeval and scikit-learn, with at least fifty of each hard kind."""

import warnings
from collections import Counter

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from nlpstack.metrics import compute
from nlpstack.metrics.classification import LabelScores
from nlpstack.metrics.entities import EntityScores, entity_spans

Tags = list[list[str]]
BIO = ["O", "B-X", "I-X", "B-Y", "I-Y"]
LABELS = ["a", "b", "c", "d"]


def tags(rng: np.random.Generator) -> list[str]:
    """A sentence: all O, or drawn from tags of which O is as likely as all others."""
    n = int(rng.integers(1, 9))
    return ["O"] * n if rng.random() < 0.3 else rng.choice(BIO, size=n, p=[0.5, *[0.125] * 4]).tolist()


def corpora(n: int = 1000) -> list[tuple[Tags, Tags]]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        gold = [tags(rng) for _ in range(int(rng.integers(1, 5)))]
        predicted = [one if rng.random() < 0.3 else rng.choice(BIO, size=len(one)).tolist() for one in gold]
        predicted = [["O"] * len(one) if rng.random() < 0.2 else one for one in predicted]
        found.append((predicted, gold))
    return found


def kinds(sentences: Tags) -> set[str]:
    found = set()
    for one in sentences:
        pairs = list(zip(["O", *one], one, strict=False))
        found |= {"all O"} if set(one) == {"O"} else set()
        found |= {"lone I-"} if any(a == "O" and b[0] == "I" for a, b in pairs) else set()
        found |= {"type change"} if any(a != "O" and b[0] == "I" and a[2:] != b[2:] for a, b in pairs) else set()
    return found


def test_entity_scores_are_those_of_seqeval_on_a_thousand_corpora() -> None:
    counts: Counter[str] = Counter()
    for predicted, gold in corpora():
        counts.update(kinds(predicted) | {f"true {kind}" for kind in kinds(gold)})
        types = [{span[0] for one in part for span in entity_spans(one)} for part in (predicted, gold)]
        counts.update({"type without support": types[0] > types[1], "nothing there": not types[1]})
        metric = EntityScores()
        for one, other in zip(predicted, gold, strict=True):
            metric.update(one, other)
        found = {name: score.value for name, score in compute(metric, "", n_resamples=0, seed=0).items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scores that have nothing to divide by
            wanted = {
                "entity_f1": f1_score(gold, predicted),
                "entity_precision": precision_score(gold, predicted),
                "entity_recall": recall_score(gold, predicted),
                "entity_f1_strict": f1_score(gold, predicted, mode="strict", scheme=IOB2),
            }
        assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert min(counts.values()) >= 50, counts
    assert counts.keys() >= {"all O", "lone I-", "type change", "true all O", "type without support", "nothing there"}


@pytest.mark.slow  # scikit-learn takes its time; test_classification.py has some of them
def test_label_scores_are_those_of_scikit_learn_on_a_thousand_sets() -> None:
    rng, counts, numbers = np.random.default_rng(1), Counter[str](), list(range(len(LABELS)))
    for _ in range(1000):
        n = int(rng.integers(1, 20))
        gold, predicted = (rng.integers(0, int(rng.integers(1, 5)), size=n) for _ in range(2))
        counts.update(
            {
                "a label without support": len(set(predicted) - set(gold)) > 0,
                "one label": len(set(gold)) == 1,
                "a label never predicted": len(set(gold) - set(predicted)) > 0,
                "all wrong": not (gold == predicted).any(),
            }
        )
        metric = LabelScores(LABELS)
        for one, other in zip(predicted.tolist(), gold.tolist(), strict=True):
            metric.update(one, other)
        found = {name: score.value for name, score in compute(metric, "", n_resamples=0, seed=0).items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of labels that are in the predictions only
            wanted = {"balanced_accuracy": balanced_accuracy_score(gold, predicted)}
        wanted["accuracy"] = accuracy_score(gold, predicted)
        for average in ("micro", "macro", "weighted"):
            parts = precision_recall_fscore_support(gold, predicted, average=average, zero_division=0)[:3]
            names = (f"{part}_{average}" for part in ("precision", "recall", "f1"))
            wanted |= dict(zip(names, parts, strict=True))
        assert found == pytest.approx(wanted)
        details = metric.details()
        assert details["confusion"]["counts"] == confusion_matrix(gold, predicted, labels=numbers).tolist()
        assert [row["n"] for row in details["per_class"].values()] == np.bincount(gold, minlength=4).tolist()
    assert min(counts.values()) >= 50, counts


def test_calibration_is_the_gap_between_confidence_and_accuracy() -> None:
    rng = np.random.default_rng(2)
    shares, right = rng.random(400), rng.random(400) < 0.5
    metric = LabelScores(LABELS)
    for share, is_right in zip(shares.tolist(), right.tolist(), strict=True):
        metric.update(0 if is_right else 1, 0, confidence=share)
    gaps = []
    for low in np.arange(15) / 15:
        here = (shares >= low) & (shares < low + 1 / 15)
        gaps.append(here.sum() * abs(shares[here].mean() - right[here].mean()))
    score = compute(metric, "s", n_resamples=0, seed=0)["calibration_error"]
    assert score.value == pytest.approx(sum(gaps) / 400)
    assert score.signature.startswith("s|bins:15|")
    curve = metric.details()["calibration"]
    assert sum(one["n"] for one in curve) == 400
    assert sum(one["n"] * abs(one["confidence"] - one["accuracy"]) for one in curve) / 400 == pytest.approx(score.value)


def test_intervals_of_labels_and_entities_hold_the_truth_as_often_as_they_say() -> None:
    """Of samples from a model whose true scores are known, by a very large sample of it."""
    rng = np.random.default_rng(3)

    def labels(n: int) -> LabelScores:
        metric, gold = LabelScores(LABELS), rng.integers(0, 4, size=n)
        predicted = np.where(rng.random(n) < 0.6 + 0.1 * (gold == 0), gold, rng.integers(0, 4, size=n))
        for one, other in zip(predicted.tolist(), gold.tolist(), strict=True):
            metric.update(one, other)
        return metric

    def entities(n: int) -> EntityScores:
        metric = EntityScores()
        for _ in range(n):
            gold = rng.choice(["O", "B-X", "B-Y"], size=6, p=[0.7, 0.2, 0.1])
            metric.update(np.where(rng.random(6) < 0.8, gold, "O").tolist(), gold.tolist())
        return metric

    for make, names in (
        (labels, ("accuracy", "f1_macro", "balanced_accuracy")),
        (entities, ("entity_f1", "entity_recall")),
    ):
        truth = compute(make(40_000), "", n_resamples=0, seed=0)  # type: ignore[arg-type]
        held: Counter[str] = Counter()
        for seed in range(200):
            found = compute(make(150), "", n_resamples=300, seed=seed)  # type: ignore[arg-type]
            held.update({name: found[name].low <= truth[name].value <= found[name].high for name in names})
        for name in names:
            assert 0.90 <= held[name] / 200 <= 0.99, (name, held)
