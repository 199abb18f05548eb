"""BLEU, chrF and ROUGE against sacrebleu and rouge-score, hard cases among them; what repeats, by counting."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from nlpstack.errors import DataError
from nlpstack.metrics import Score, compute, resamples
from nlpstack.metrics.text import ROUGES, TextScores, TextScoring

Case = tuple[str, tuple[str, ...]]  # a text and its references

WORDS = ["the", "The", "a", "cat", "sat", "on", "mat", ",", ".", "!", "It's", "3.5", "naïve", "Ünder", "猫", "near-by"]


def text(rng: np.random.Generator, longest: int = 14) -> str:
    return " ".join(rng.choice(WORDS, size=int(rng.integers(1, longest))))


def cases(seed: int, n: int = 1000) -> list[Case]:
    """Random pairs; a tenth of each hard kind: empty, equal, repeated or many references, case, one word, lines."""
    rng, found = np.random.default_rng(seed), []
    for number in range(n):
        predicted, references = text(rng), [text(rng) for _ in range(int(rng.integers(1, 4)))]
        kind = number % 10
        if kind == 1:
            predicted = ""
        elif kind == 2:
            predicted = references[-1]
        elif kind == 3:
            references = [references[0]] * 3
        elif kind == 4:
            references = [text(rng) for _ in range(8)]
        elif kind == 5:
            predicted = references[0].swapcase()
        elif kind == 6:
            predicted, references = str(rng.choice(WORDS)), [str(rng.choice(WORDS))]
        elif kind == 7:
            predicted = f"{predicted}\n{references[0]}\n"
            references[0] = f"{references[0]}\n{text(rng)}"
        found.append((predicted, tuple(references)))
    return found


def hard(found: Sequence[Case]) -> Counter[str]:
    """How many of each hard kind there are."""
    count: Counter[str] = Counter()
    for predicted, references in found:
        count["empty output"] += not predicted
        count["repeated references"] += len(references) > len(set(references))
        count["many references"] += len(references) > 4
        count["equal to a reference"] += predicted in references
        count["other case"] += predicted not in references and predicted.lower() in [one.lower() for one in references]
        count["one word"] += len(predicted.split()) == 1
        count["several lines"] += "\n" in predicted
    return count


def filled(found: Sequence[Case], **how: bool) -> TextScores:
    metric = TextScores(TextScoring(**how))
    for predicted, references in found:
        metric.update(predicted, references)
    return metric


def scores(found: Sequence[Case], n_resamples: int = 0, **how: bool) -> dict[str, Score]:
    return compute(filled(found, **how), "s", n_resamples=n_resamples, seed=0)


def streams(found: Sequence[Case]) -> list[list[str | None]]:
    widest = max(len(references) for _, references in found)
    return [[refs[i] if i < len(refs) else None for _, refs in found] for i in range(widest)]


@pytest.mark.parametrize("lowercase", [False, True])
def test_bleu_and_chrf_are_those_of_sacrebleu(lowercase: bool) -> None:
    found = cases(1)
    assert all(count >= 50 for count in hard(found).values()), hard(found)
    groups = [found, *(found[i : i + 10] for i in range(0, 1000, 10)), *([one] for one in found[:300])]
    for group in groups:
        made, texts = scores(group, lowercase=lowercase), [predicted for predicted, _ in group]
        for name, scorer in (("bleu", BLEU(lowercase=lowercase)), ("chrf", CHRF(lowercase=lowercase))):
            assert made[name].value == pytest.approx(scorer.corpus_score(texts, streams(group)).score, abs=1e-9)
            assert made[name].signature == f"s|{scorer.get_signature().format()}|unit:text|resamples:0|seed:0"


@pytest.mark.parametrize("stemming", [False, True])
def test_rouge_is_that_of_rouge_score(stemming: bool) -> None:
    found = cases(2)
    scorer = RougeScorer(list(ROUGES), use_stemmer=stemming)
    best = [scorer.score_multi(list(references), predicted) for predicted, references in found]
    for (predicted, references), wanted in zip(found, best, strict=True):
        made = scores([(predicted, references)], stemming=stemming)
        for name in ROUGES:
            assert made[name].value == pytest.approx(100 * wanted[name].fmeasure)
    whole = scores(found, stemming=stemming)
    for name in ROUGES:
        assert whole[name].value == pytest.approx(100 * np.mean([one[name].fmeasure for one in best]))
    assert f"|refs:best|stem:{'yes' if stemming else 'no'}|words:a-z0-9|" in whole["rouge1"].signature


def test_rouge_of_the_mean_reference_and_of_words_in_any_script() -> None:
    found = cases(3, 200)
    scorer = RougeScorer(list(ROUGES))
    mean = [np.mean([scorer.score(one, text)["rougeL"].fmeasure for one in refs]) for text, refs in found]
    made = scores(found, mean_references=True)
    assert made["rougeL"].value == pytest.approx(100 * np.mean(mean))
    assert "|refs:mean|" in made["rougeL"].signature
    russian = [("кошка спит", ("кошка ест",))]
    assert scores(russian)["rouge1"].value == 0.0  # rouge-score drops what is not a-z or 0-9
    assert scores(russian, unicode_words=True)["rouge1"].value == pytest.approx(50)
    assert "|words:unicode|" in scores(russian, unicode_words=True)["rouge1"].signature


def test_sentences_are_cut_for_rouge_lsum_alone() -> None:
    found = [("It rains. The cat sat.", ("The cat sat. It rains.",))]
    metric = TextScores(TextScoring(), lambda text: text.replace(". ", ".|").split("|"))
    metric.update(*found[0])
    made = compute(metric, "s", n_resamples=0, seed=0)
    assert made["rougeLsum"].value == pytest.approx(100)
    assert made["rougeL"].value == scores(found)["rougeL"].value < 100


def test_matches_and_repetition_by_counting() -> None:
    found = [(" a b a b a b a b ", ("a b",)), ("Yes", ("no", "yes")), ("", ("x",))]
    made = scores(found)
    assert made["exact_match"].value == 0
    assert scores(found, lowercase=True)["exact_match"].value == pytest.approx(1 / 3)
    assert made["repetition"].value == pytest.approx(3 / 5)  # abab baba abab baba abab
    assert made["distinct1"].value == pytest.approx(3 / 9)
    assert made["distinct2"].value == pytest.approx(2 / 7)
    assert all(score.n == 3 for score in made.values())


def test_resamples_are_the_scores_of_resampled_texts() -> None:
    found = cases(4, 40)
    counts = np.array([np.bincount(row, minlength=40) for row in np.concatenate(list(resamples(40, 12, 3)))])
    drawn = {k: v for part in filled(found).parts() for k, (v, _) in part.scores(part.rows, counts).items()}
    for i, row in enumerate(counts):
        made = scores([found[place] for place in np.repeat(np.arange(40), row)])
        assert {name: values[i] for name, values in drawn.items()} == pytest.approx(
            {k: s.value for k, s in made.items()}
        )
    for name, score in scores(found, n_resamples=200).items():
        if name.startswith("distinct"):  # it falls as texts repeat, so that an interval would lie below it
            assert math.isnan(score.low)
        else:
            assert score.low <= score.value <= score.high


def test_no_reference_or_an_empty_one_is_refused() -> None:
    for references in ((), ("",), (" ", "\n")):
        with pytest.raises(DataError, match="example 1: has no reference, or an empty one"):
            scores([("a", references)])
    with pytest.raises(DataError, match="nothing to score"):
        scores([])
    assert math.isnan(scores([("a", ("a",))], n_resamples=10)["bleu"].low)


def test_official_bleu_of_six_e2e_systems(shared_data: Path) -> None:
    import json

    folder = shared_data / "e2e"
    lines = [line.split("\t") for line in (folder / "outputs" / "scores.tsv").read_text().splitlines()]
    header, rows = lines[0], lines[1:]
    bleu = next(i for i, name in enumerate(header) if name.lower().startswith("bleu"))
    assert len(rows) == 6
    for row in rows:
        outputs = (folder / "outputs" / row[0]).read_text(encoding="utf-8").splitlines()
        split = row[0].partition(".")[0]
        gold = [json.loads(line)["references"] for line in (folder / f"{split}.jsonl").open(encoding="utf-8")]
        made = TextScores(TextScoring(lowercase=True))
        for one, references in zip(outputs, gold, strict=True):
            made.update(one, references)
        part = made._overlap("bleu", outputs, gold)
        value = part.scores(part.rows, np.ones((1, len(part.rows)), dtype=np.int64))["bleu"][0][0]
        official = float(row[bleu])
        assert f"{value:.2f}" == f"{official if official > 1 else 100 * official:.2f}", row[0]


def test_rouge_of_many_texts_is_shared_out_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {}
    for at_once in (1000, 20):
        monkeypatch.setattr("nlpstack.metrics.text._AT_ONCE", at_once)
        metric = TextScores(TextScoring())
        for predicted, references in cases(5, 50):
            metric.update(predicted, references)
        rows[at_once] = next(part.rows for part in metric.parts() if "rougeL" in part.readings)
    assert np.array_equal(rows[1000], rows[20])
    assert rows[20][:, ::2].any()
