"""What guessing without a model reaches, scored by the same metrics on the very targets that the model is scored on."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nlpstack.data.batch import IGNORE_INDEX, Batch
from nlpstack.data.shards import TokenShards
from nlpstack.metrics import Metric
from nlpstack.metrics.entities import EntityScores
from nlpstack.metrics.language_model import LanguageModelScores, MaskedLMScores
from nlpstack.tasks import NER, CausalLM, Classification, EvalConfig, LabelledTask
from nlpstack.tasks.masked_lm import ALONE

SHOWN = ("accuracy", "entity_f1", "word_accuracy", "mlm_accuracy")  # of what a run's end says of guesses
_COUNTED_TOKENS = 1 << 24  # of the training text, from its beginning: counts of what is frequent settle long before


class Bigrams:
    """Counts of the tokens of a training text and of those that follow each other in it."""

    def __init__(self, train: TokenShards) -> None:
        tokens = train.read(0, min(len(train), _COUNTED_TOKENS)).astype(np.int64)
        self.size = train.spec.vocab_size
        self.counts = np.bincount(tokens, minlength=self.size)
        self._pairs, self._times = np.unique(tokens[:-1] * self.size + tokens[1:], return_counts=True)
        firsts = self._pairs // self.size
        self._kinds = np.bincount(firsts, minlength=self.size)  # different followers of each token
        self._followed = np.bincount(firsts, self._times, minlength=self.size)

    def likeliest(self) -> tuple[int, np.ndarray]:
        """The most frequent token, and the most frequent one after each; the smallest of the equally frequent ones."""
        unigram = int(self.counts.argmax())
        order = np.lexsort((-self._pairs, self._times))  # the last one stays
        followers = np.full(self.size, unigram)
        followers[self._pairs[order] // self.size] = self._pairs[order] % self.size
        return unigram, followers

    def losses(self, before: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """-ln p of each token alone, every count raised by 1, and after another (Witten & Bell 1991, method C)."""
        alone = (self.counts[tokens] + 1) / (self.counts.sum() + self.size)
        wanted = before.astype(np.int64) * self.size + tokens
        place = np.minimum(np.searchsorted(self._pairs, wanted), len(self._pairs) - 1)
        times = np.where(self._pairs[place] == wanted, self._times[place], 0)
        kinds, followed = self._kinds[before], self._followed[before]
        both = np.where(followed > 0, (times + kinds * alone) / np.maximum(1, followed + kinds), alone)
        return -np.log(alone), -np.log(both)


def language_baselines(task: CausalLM, train: TokenShards, batches: Iterable[Batch]) -> dict[str, Metric]:
    """A language model of single tokens and one of pairs, learned from a training split."""
    counts, metrics = Bigrams(train), {"unigram": LanguageModelScores(), "bigram": LanguageModelScores()}
    for batch in batches:
        tokens, labels = batch.tokens.numpy(), batch.labels["lm"].numpy()
        scored = labels != IGNORE_INDEX
        for metric, nll in zip(metrics.values(), counts.losses(tokens, np.where(scored, labels, 0)), strict=True):
            task.count(batch.about, (nll * scored).sum(axis=1).tolist(), metric)
    return {**metrics}


def masked_baselines(train: TokenShards, batches: Iterable[Batch]) -> dict[str, Metric]:
    """mlm_accuracy of two guesses at the hidden tokens of `batches`, learned from the tokens of a training split.

    "unigram": always the most frequent token. "bigram": the most frequent one after the left neighbour as it stands in
    the row, where that was seen in the training text (a [MASK] or [CLS] was not: then the unigram's).
    """
    unigram, followers = Bigrams(train).likeliest()
    metrics = {"unigram": MaskedLMScores(), "bigram": MaskedLMScores()}
    for batch in (one for one in batches if one.about != ALONE):
        assert batch.places is not None
        labels, places = batch.labels["mlm"].numpy(), batch.places.numpy()
        counted = labels != IGNORE_INDEX
        labels, places = labels[counted], places[counted]
        row = places // batch.tokens.shape[1]
        guesses = np.full(len(labels), unigram), followers[batch.tokens.flatten().numpy()[places - 1]]
        for metric, guess in zip(metrics.values(), guesses, strict=True):
            n, hits = (np.bincount(row, weights, len(batch.tokens)) for weights in (None, labels == guess))
            for counts in zip(n.tolist(), hits.astype(int).tolist(), strict=True):
                metric.update((math.nan, *counts))
    return {**metrics}


def labelled_baselines(
    task: LabelledTask, train: Sequence[Any], scored: Sequence[Any], *, learn: bool = True
) -> dict[str, Metric]:
    """Guesses at the labels of examples; with `learn` also a small model of the words, which takes longer."""
    if isinstance(task, NER):
        return {"most_frequent_tag": _usual_tags(train, scored)}
    if not isinstance(task, Classification):
        return {}
    guesses: dict[str, Callable[..., Iterator[tuple[Any, ...]]]] = {"majority": _majority}
    if learn:
        guesses["tfidf_linear" if task.labels.problem == "regression" else "tfidf_logistic"] = _words
    found: dict[str, Metric] = {}
    for name, guess in guesses.items():
        found[name] = metric = task.metric(EvalConfig())
        for number, (told, example) in enumerate(zip(guess(task, train, scored), scored, strict=True)):
            metric.update(told[0], task.label(example), *told[1:], number=number)  # type: ignore[misc]
    return found


def _majority(task: Classification, train: Sequence[Any], scored: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    if task.labels.problem == "regression":
        guess = float(np.mean([example.label for example in train]))
    else:
        most = Counter(example.label for example in train).most_common(1)[0][0]
        guess = task.label(next(example for example in train if example.label == most))
    yield from ((guess,) for _ in scored)


def _words(task: Classification, train: Sequence[Any], scored: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Logistic (of numbers: ridge) regression on TF-IDF of words and pairs of words, by scikit-learn."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    seen, unseen = ([f"{example.text} {example.text_b or ''}" for example in part] for part in (train, scored))
    problem, logistic = task.labels.problem, LogisticRegression(C=10, max_iter=1000)
    kinds: Mapping[str, Any] = {"single": logistic, "multi": OneVsRestClassifier(logistic), "regression": Ridge()}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    known = make_pipeline(words, kinds[problem]).fit(seen, np.array([task.label(e) for e in train]))
    if problem != "single":
        yield from ((told,) for told in known.predict(unseen).tolist())
        return
    shares = np.zeros((len(scored), len(task.labels.names)))
    shares[:, known.classes_] = known.predict_proba(unseen)
    for row, example in zip(shares, scored, strict=True):
        yield int(row.argmax()), -math.log(max(row[task.label(example)], 1e-12)), float(row.max())


def _usual_tags(train: Sequence[Any], scored: Sequence[Any]) -> EntityScores:
    """Each word tagged as training most often has it; a word that it lacks is O."""
    counts: dict[str, Counter[str]] = {}
    for example in train:
        for word, tag in zip(example.words, example.tags or (), strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    usual = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    scores = EntityScores()
    for number, example in enumerate(scored):
        scores.update([usual.get(word, "O") for word in example.words], example.tags or (), None, number)
    return scores
