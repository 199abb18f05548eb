"""Entities out of tags and their scores: seqeval's, and those published for seven systems on WNUT 2017."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Entities

from nlpstack.errors import DataError
from nlpstack.metrics import compute, resamples
from nlpstack.metrics.entities import EntityScores, Span, entity_spans, overlaps, strict_spans

Sentences = list[tuple[list[str], list[str]]]  # predicted and true tags of each sentence

QUICK = settings(max_examples=60, deadline=None)  # deadlines fail on a busy machine

BIO = ["O", "B-X", "I-X", "B-Y", "I-Y"]  # every sequence of these, valid or not
BIOES = [*BIO, "E-X", "S-X", "E-Y", "S-Y"]


def tag_lists(tags: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(tags), max_size=12)


def corpora(tags: list[str]) -> st.SearchStrategy[Sentences]:
    sentence = st.lists(st.tuples(st.sampled_from(tags), st.sampled_from(tags)), min_size=1, max_size=8)
    return st.lists(sentence.map(lambda pairs: ([p for p, _ in pairs], [g for _, g in pairs])), min_size=1, max_size=6)


def valid_iob2(tags: list[str]) -> list[str]:
    """The tags, an I- that continues nothing made a B-."""
    valid: list[str] = []
    for tag in tags:
        follows = valid and valid[-1] in (f"B-{tag[2:]}", tag)
        valid.append(f"B-{tag[2:]}" if tag[0] == "I" and not follows else tag)
    return valid


def filled(sentences: Sentences) -> EntityScores:
    metric = EntityScores()
    for predicted, gold in sentences:
        metric.update(predicted, gold)
    return metric


def values(sentences: Sentences) -> dict[str, float]:
    return {name: score.value for name, score in compute(filled(sentences), "s", n_resamples=0, seed=0).items()}


def seqeval_scores(sentences: Sentences) -> dict[str, float]:
    predicted, gold = [p for p, _ in sentences], [g for _, g in sentences]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scores that have nothing to divide by
        return {
            "entity_f1": f1_score(gold, predicted),
            "entity_precision": precision_score(gold, predicted),
            "entity_recall": recall_score(gold, predicted),
            "entity_f1_strict": f1_score(gold, predicted, mode="strict", scheme=IOB2),
        }


@pytest.mark.parametrize(
    ("tags", "spans", "strict"),
    [
        ("", [], []),
        ("O O", [], []),
        ("B-X", [("X", 0, 1)], [("X", 0, 1)]),
        ("B-X I-X O", [("X", 0, 2)], [("X", 0, 2)]),
        ("B-X B-X I-X", [("X", 0, 1), ("X", 1, 3)], [("X", 0, 1), ("X", 1, 3)]),
        ("I-X I-X O", [("X", 0, 2)], []),
        ("O I-X", [("X", 1, 2)], []),
        ("B-X O I-X", [("X", 0, 1), ("X", 2, 3)], [("X", 0, 1)]),
        ("B-X I-Y I-Y", [("X", 0, 1), ("Y", 1, 3)], [("X", 0, 1)]),
        ("B-X I-Y I-X", [("X", 0, 1), ("Y", 1, 2), ("X", 2, 3)], [("X", 0, 1)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 2)], [("creative-work", 0, 2)]),
        ("B-X E-X E-X S-X S-X", [("X", 0, 2), ("X", 2, 3), ("X", 3, 4), ("X", 4, 5)], [("X", 0, 1)]),
        ("B-X E-X I-X", [("X", 0, 2), ("X", 2, 3)], [("X", 0, 1)]),
        ("B I", [("", 0, 2)], [("", 0, 2)]),
    ],
)
def test_spans_of_hand_made_tags(
    tags: str, spans: list[tuple[str, int, int]], strict: list[tuple[str, int, int]]
) -> None:
    assert entity_spans(tags.split()) == spans
    assert strict_spans(tags.split()) == strict


@pytest.mark.parametrize("tag", ["", "LOC", "U-LOC", "b-LOC", "BI-LOC", "-LOC"])
def test_a_tag_of_another_scheme_is_refused(tag: str) -> None:
    with pytest.raises(DataError, match=f"unknown tag '{tag}'"):
        entity_spans(["O", tag])


@QUICK
@given(tag_lists(BIOES))
def test_spans_are_those_of_seqeval(tags: list[str]) -> None:
    # seqeval's default is conlleval's reading but for two things: conlleval knows no S-, and to it a B- after an E- of
    # the same type starts nothing. There we follow seqeval.
    assert entity_spans(tags) == [(kind, first, last + 1) for kind, first, last in get_entities(tags)]


@QUICK
@given(tag_lists(BIO))
def test_strict_spans_are_those_of_seqeval(tags: list[str]) -> None:
    (entities,) = Entities([tags], scheme=IOB2).entities
    assert strict_spans(tags) == [(entity.tag, entity.start, entity.end) for entity in entities]


@QUICK
@given(tag_lists(BIO).map(valid_iob2))
def test_of_valid_iob2_both_readings_are_the_same(tags: list[str]) -> None:
    assert strict_spans(tags) == entity_spans(tags)


@QUICK
@given(corpora(BIO))
def test_scores_are_those_of_seqeval(sentences: Sentences) -> None:
    found = values(sentences)
    pairs = [pair for predicted, gold in sentences for pair in zip(predicted, gold, strict=True)]
    assert found.pop("word_accuracy") == pytest.approx(np.mean([p == g for p, g in pairs]))
    for view in ("boundary", "type", "partial"):
        assert found.pop(f"entity_f1_{view}") >= found["entity_f1"]
    assert found == pytest.approx(seqeval_scores(sentences))


@QUICK
@given(corpora(BIO))
def test_scores_of_a_type_are_those_of_the_entities_of_that_type(sentences: Sentences) -> None:
    table = filled(sentences).details()["per_class"]
    assert list(table) == sorted({kind for pair in sentences for tags in pair for kind, _, _ in entity_spans(tags)})
    for kind, own in table.items():
        alone = [tuple([tag if tag.endswith(kind) else "O" for tag in tags] for tags in pair) for pair in sentences]
        found = seqeval_scores(alone)  # type: ignore[arg-type]
        assert own["n"] == sum(span[0] == kind for _, gold in sentences for span in entity_spans(gold))
        for name in ("precision", "recall", "f1"):
            assert own[name] == pytest.approx(found[f"entity_{name}"])


def most_pairs(found: list[Span], true: list[Span], *, typed: bool) -> int:
    """By trying every way to pair spans off."""
    if not found:
        return 0
    (kind, first, stop), *rest = found
    best = most_pairs(rest, true, typed=typed)
    for i, (other, start, end) in enumerate(true):
        if start < stop and first < end and (kind == other or not typed):
            best = max(best, 1 + most_pairs(rest, true[:i] + true[i + 1 :], typed=typed))
    return best


@QUICK
@given(tag_lists(BIO), tag_lists(BIO), st.booleans())
def test_no_other_pairing_of_overlapping_spans_has_more_pairs(one: list[str], two: list[str], typed: bool) -> None:
    found, true = entity_spans(one), entity_spans(two)
    assert overlaps(found, true, typed=typed) == most_pairs(found, true, typed=typed)


def test_views_of_boundaries_types_and_parts() -> None:
    gold = ["B-X", "I-X", "O", "B-Y", "O", "B-X", "O", "O"]
    found = ["B-X", "I-X", "O", "B-X", "O", "O", "B-X", "I-X"]  # exact; other type; missed; nothing there
    scores = values([(found, gold)])
    assert scores["entity_f1"] == pytest.approx(2 * 1 / 6)
    assert scores["entity_f1_boundary"] == pytest.approx(2 * 2 / 6)
    assert scores["entity_f1_type"] == pytest.approx(2 * 1 / 6)
    assert scores["entity_f1_partial"] == pytest.approx(2 * 2 / 6)
    cut = ["B-X", "O", "O", "B-Y", "O", "B-Y", "I-Y", "O"]  # half of it; exact; too long and of another type
    scores = values([(cut, gold)])
    assert scores["entity_f1"] == pytest.approx(2 * 1 / 6)
    assert scores["entity_f1_boundary"] == pytest.approx(2 * 1 / 6)
    assert scores["entity_f1_type"] == pytest.approx(2 * 2 / 6)
    assert scores["entity_f1_partial"] == pytest.approx(2 * (1 + 2 / 2) / 6)


def read(path: Path) -> list[list[str]]:
    blocks = path.read_text(encoding="utf-8").strip("\n").split("\n\n")
    return [[line.rpartition("\t")[2] for line in block.split("\n")] for block in blocks]


def test_published_scores_of_wnut17_systems(shared_data: Path) -> None:
    folder = shared_data / "wnut17"
    gold = read(folder / "test.conll")
    systems = [line.split("\t") for line in (folder / "outputs" / "scores.tsv").read_text().splitlines()[1:]]
    assert len(systems) == 7
    for name, published, _ in systems:
        predicted = read(folder / "outputs" / name)
        scores = compute(filled(list(zip(predicted, gold, strict=True))), "s", n_resamples=0, seed=0)
        assert f"{100 * scores['entity_f1'].value:.2f}" == published, name
        assert scores["entity_f1"].n == 1079


def test_each_score_says_what_it_is_averaged_over_and_how_tags_are_read() -> None:
    metric = EntityScores()
    metric.update(["B-X", "I-X", "O", "I-Y"], ["B-X", "I-X", "O", "O"], nll=6.0)
    metric.update(["B-X", "O"], ["B-Y", "I-Z"], nll=3.0)
    scores = compute(metric, "s", n_resamples=5, seed=3)
    assert {name: (score.value, score.n) for name, score in scores.items()} == {
        "entity_f1": (pytest.approx(2 / 6), 3),
        "entity_precision": (pytest.approx(1 / 3), 3),
        "entity_recall": (pytest.approx(1 / 3), 3),
        "entity_f1_strict": (pytest.approx(2 / 4), 2),
        "entity_f1_boundary": (pytest.approx(4 / 6), 3),
        "entity_f1_type": (pytest.approx(2 / 6), 3),
        "entity_f1_partial": (pytest.approx(4 / 6), 3),
        "word_accuracy": (pytest.approx(3 / 6), 6),
        "loss": (pytest.approx(1.5), 6),
    }
    assert scores["entity_f1"].signature == "s|tags:conlleval|unit:sentence|resamples:5|seed:3"
    assert scores["entity_f1_strict"].signature == "s|tags:strict-iob2|unit:sentence|resamples:5|seed:3"


def test_where_no_entity_is_every_entity_score_is_zero() -> None:
    scores = compute(filled([(["O", "O"], ["O", "O"])] * 3), "s", n_resamples=20, seed=0)
    assert tuple(scores.pop("word_accuracy")[:3]) == (1.0, 1.0, 1.0)
    assert [tuple(score[:3]) for score in scores.values()] == [(0.0, 0.0, 0.0)] * 7


def test_of_one_sentence_there_is_no_interval() -> None:
    score = compute(filled([(["B-X"], ["B-X"])]), "s", n_resamples=20, seed=0)["entity_f1"]
    assert score.value == 1.0
    assert math.isnan(score.low)
    assert math.isnan(score.high)


def test_no_words_are_nothing_to_score() -> None:
    for sentences in ([], [([], [])]):
        with pytest.raises(DataError, match="nothing to score: the split has no words"):
            values(sentences)


def test_predicted_and_true_tags_are_of_the_same_words() -> None:
    with pytest.raises(AssertionError):
        EntityScores().update(["O"], ["O", "O"])


def test_intervals_are_those_of_resampled_sentences() -> None:
    rng = np.random.default_rng(5)
    sentences: Sentences = [tuple(rng.choice(BIO, size=(2, 6)).tolist()) for _ in range(40)]  # type: ignore[misc]
    sentences += [(gold, gold) for _, gold in sentences]
    scores = compute(filled(sentences), "s", n_resamples=60, seed=7)
    assert scores == compute(filled(sentences), "s", n_resamples=60, seed=7)
    assert scores != compute(filled(sentences), "s", n_resamples=60, seed=8)

    (part,) = filled(sentences).parts()
    counts = np.array([np.bincount(row, minlength=80) for row in np.concatenate(list(resamples(80, 60, 7)))])
    found = part.scores(part.rows, counts)
    for i, row in enumerate(counts):
        wanted = values([sentences[place] for place in np.repeat(np.arange(80), row)])
        assert {name: column[i] for name, (column, _) in found.items()} == pytest.approx(wanted)
    for score in scores.values():
        assert score.low < score.value < score.high
