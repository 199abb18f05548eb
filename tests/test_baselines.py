"""Guesses without a model, against plain counting."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from nlpstack.baselines import Bigrams, labelled_baselines, language_baselines, masked_baselines
from nlpstack.data.batch import IGNORE_INDEX, Batch
from nlpstack.data.labelled import TaggedExample, TextExample
from nlpstack.metrics import compute
from nlpstack.model import TransformerConfig
from nlpstack.model.heads import Labels
from nlpstack.tasks import NER, CausalLM, Classification, TaskConfig
from nlpstack.tasks.causal_lm import batch_windows, windows
from tests.handmade import FIRST, LetterTokenizer, MakeShards

MASK = 1


def test_guesses_are_the_most_frequent_token_and_the_most_frequent_follower(make_shards: MakeShards) -> None:
    text = "abracadabra abrakadabra simsalabim " * 3 + "zq"
    train = make_shards([text], bos_id=None, eos_id=None)
    tokens = [FIRST + ord(char) for char in text]
    frequent = Counter(tokens).most_common(1)[0][0]
    followers: dict[int, Counter[int]] = {}
    for left, right in pairwise(tokens):
        followers.setdefault(left, Counter())[right] += 1
    rng = np.random.default_rng(0)
    n = unigram = bigram = 0
    batches = []
    for start in rng.integers(0, len(tokens) - 11, size=12):
        row = np.array([0, *tokens[start : start + 11]])
        places = np.sort(rng.choice(np.arange(1, 12), size=4, replace=False))
        seen, labels = row.copy(), row[places]
        seen[places] = MASK
        for place, label in zip(places, labels, strict=True):
            known = followers.get(int(seen[place - 1]))
            best = [token for token, times in known.items() if times == max(known.values())] if known else [frequent]
            n, unigram, bigram = n + 1, unigram + (label == frequent), bigram + (label == min(best))
        batch = Batch(
            tokens=torch.from_numpy(seen)[None],
            labels={"mlm": torch.tensor([*labels, IGNORE_INDEX])},
            places=torch.tensor([*places, 0]),
        )
        batches.append(batch)
    metrics = masked_baselines(train, batches)
    found = {name: compute(metric, "", n_resamples=0, seed=0)["mlm_accuracy"] for name, metric in metrics.items()}
    assert {name: score.value for name, score in found.items()} == {"unigram": unigram / n, "bigram": bigram / n}
    assert 0 < found["unigram"].value < found["bigram"].value < 1
    assert found["unigram"].n == n


def test_probabilities_of_tokens_alone_and_after_another_sum_to_one(make_shards: MakeShards) -> None:
    counts = Bigrams(make_shards(["abracadabra simsalabim"], bos_id=None, eos_id=None))
    every = np.arange(counts.size)
    for before in (FIRST + ord("a"), FIRST + ord("m"), FIRST + ord("~")):  # often, at the end only, never there
        alone, both = counts.losses(np.full(counts.size, before), every)
        assert np.exp(-alone).sum() == pytest.approx(1)
        assert np.exp(-both).sum() == pytest.approx(1)
    times = Counter("abracadabra simsalabim")
    alone, both = counts.losses(np.array([FIRST + ord("b")]), np.array([FIRST + ord("r")]))
    assert alone[0] == pytest.approx(-math.log((times["r"] + 1) / (22 + counts.size)))
    # b is followed by r twice and by i once: 3 places, 2 kinds
    assert both[0] == pytest.approx(-math.log((2 + 2 * math.exp(-alone[0])) / 5))


def test_language_baselines_score_the_tokens_that_a_model_scores(make_shards: MakeShards) -> None:
    train = make_shards(["abracadabra simsalabim " * 4], bos_id=None, eos_id=None)
    text = make_shards(["abrakadabra", "simsalabim abra"], bos_id=None, eos_id=None)
    task = CausalLM(LetterTokenizer())
    found = {}
    for window, stride in ((4, 4), (6, 2)):
        batches = batch_windows(windows(text, window, stride, 0), window, 8)
        for name, metric in language_baselines(task, train, batches).items():
            found[name, window] = compute(metric, "", n_resamples=0, seed=0)["loss"]
    counts = Bigrams(train)
    tokens = [[FIRST + ord(char) for char in one] for one in ("abrakadabra", "simsalabim abra")]
    pairs = np.array([pair for one in tokens for pair in pairwise(one)])
    for place, name in enumerate(("unigram", "bigram")):
        for window in (4, 6):
            assert found[name, window].value == pytest.approx(counts.losses(*pairs.T)[place].mean())
            assert found[name, window].n == len(pairs)


def classification(problem: str, names: tuple[str, ...]) -> Classification:
    shape = TransformerConfig(vocab_size=300, max_seq_len=64, dim=16, n_heads=2, causal=False, n_segments=2)
    return Classification(LetterTokenizer(), shape, Labels(names, problem), TaskConfig(name="classification"))  # type: ignore[arg-type]


def texts(rows: list[tuple[str, Any]]) -> list[TextExample]:
    return [TextExample("f:1", text, None, label) for text, label in rows]


def test_words_tell_labels_that_the_majority_misses() -> None:
    train = texts(
        [("good film", "yes"), ("very good", "yes"), ("so good", "yes"), ("bad film", "no"), ("so bad", "no")]
    )
    scored = texts([("good", "yes"), ("bad", "no"), ("bad bad", "no"), ("a film", "yes")])
    found = labelled_baselines(classification("single", ("no", "yes")), train, scored)
    scores = {name: compute(metric, "", n_resamples=20, seed=0) for name, metric in found.items()}
    assert scores["majority"]["accuracy"].value == 0.5
    assert scores["tfidf_logistic"]["accuracy"].value == 1.0
    assert scores["tfidf_logistic"]["loss"].value < math.log(2)
    assert list(labelled_baselines(classification("single", ("no", "yes")), train, scored, learn=False)) == ["majority"]


def test_words_tell_several_labels_and_numbers() -> None:
    train = texts([("x", ("a",)), ("y", ("b",)), ("x y", ("a", "b")), ("x x", ("a",))])
    found = labelled_baselines(classification("multi", ("a", "b")), train, texts([("x", ("a",)), ("y x", ("a", "b"))]))
    assert compute(found["majority"], "", n_resamples=0, seed=0)["accuracy"].value == 0.5
    assert compute(found["tfidf_logistic"], "", n_resamples=0, seed=0)["f1_micro"].value > 0.5
    train = texts([("low", 1.0), ("high", 5.0), ("high high", 5.0), ("low low", 1.0)])
    found = labelled_baselines(classification("regression", ("score",)), train, texts([("low", 0.0), ("high", 6.0)]))
    assert compute(found["majority"], "", n_resamples=0, seed=0)["loss"].value == 9.0
    assert compute(found["tfidf_linear"], "", n_resamples=0, seed=0)["spearman"].value == pytest.approx(1.0)


def test_the_most_frequent_tag_of_each_word() -> None:
    train = [
        TaggedExample("f:1", ("Rome", "is", "Rome"), ("B-LOC", "O", "B-LOC")),
        TaggedExample("f:2", ("Rome",), ("B-PER",)),
    ]
    scored = [TaggedExample("g:1", ("Rome", "has", "Paris"), ("B-LOC", "O", "B-LOC"))]
    shape = TransformerConfig(vocab_size=300, max_seq_len=64, dim=16, n_heads=2, causal=False, n_segments=2)
    task = NER(LetterTokenizer(), shape, Labels(("O", "B-LOC", "I-LOC", "B-PER", "I-PER")), TaskConfig(name="ner"))
    scores = compute(labelled_baselines(task, train, scored)["most_frequent_tag"], "", n_resamples=0, seed=0)
    assert scores["entity_f1"].value == pytest.approx(2 / 3)
    assert scores["word_accuracy"].value == pytest.approx(2 / 3)
