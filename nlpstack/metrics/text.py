"""Scores of generated text: BLEU and chrF by sacrebleu, ROUGE by rouge-score, exact match, and how much repeats."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from nlpstack.errors import DataError
from nlpstack.metrics import Units, Values, share

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_REPEATED = 4  # words of the n-grams that are looked for a second time
_AT_ONCE = 1000  # texts that a process takes ROUGE of at a time; for fewer none is worth starting
_DISTINCT = (1, 2)  # words of the n-grams whose distinct ones are counted


@dataclass(frozen=True, kw_only=True)
class TextScoring:
    """How texts are compared; all of it is in the signatures."""

    lowercase: bool = False  # BLEU, chrF, exact match; ROUGE always does
    stemming: bool = False  # ROUGE: Porter's, of English
    mean_references: bool = False  # ROUGE: the mean over references, not the best
    unicode_words: bool = False  # ROUGE: words of any script, not of a-z and 0-9 alone


def overlap_scorer(name: str, lowercase: bool) -> "Metric":
    """sacrebleu's BLEU or chrF; `force`: a text that looks tokenized is no reason to warn."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(lowercase=lowercase, force=True) if name == "bleu" else CHRF(lowercase=lowercase)


def overlap_formula(rows: np.ndarray, counts: np.ndarray, *, name: str) -> Values:
    """BLEU (Papineni et al. 2002) or chrF (Popović 2015), 0 to 100, of sacrebleu's counts of each text."""
    score = overlap_scorer(name, lowercase=False)._compute_score_from_stats  # of counts, whose case is decided
    return {name: (np.array([score(sums).score for sums in (counts @ rows).tolist()]), counts.sum(axis=1))}


def share_formula(rows: np.ndarray, counts: np.ndarray, *, names: Sequence[str], scale: float) -> Values:
    """Shares: rows of (above, below) for each name in turn."""
    sums, n = counts @ rows, counts.sum(axis=1)
    return {name: (scale * share(sums[:, 2 * i], sums[:, 2 * i + 1]), n) for i, name in enumerate(names)}


def distinct_formula(rows: np.ndarray, counts: np.ndarray, *, name: str) -> Values:
    """Different n-grams over all of them (Li et al. 2016, section 5.3): rows of their numbers, -1 behind the last."""
    seen = [len(np.unique(drawn[drawn >= 0])) for drawn in (rows[row > 0] for row in counts)]
    return {name: (share(np.array(seen), counts @ (rows >= 0).sum(axis=1)), counts.sum(axis=1))}


class TextScores:
    """BLEU, chrF, ROUGE, exact match, distinct n-grams and repetition of texts against one or more references each."""

    def __init__(self, scoring: TextScoring, sentences: Callable[[str], Sequence[str]] = str.splitlines) -> None:
        """`sentences` cuts a text for rougeLsum."""
        self.scoring, self._sentences = scoring, sentences
        self.told: dict[int, tuple[str, Sequence[str]]] = {}  # example -> text, references

    def update(self, predicted: str, references: Sequence[str], number: int = -1) -> None:
        """Count a text and what it should be, in any of the ways given."""
        number = len(self.told) if number < 0 else number
        if not any(one.strip() for one in references):
            raise DataError(f"example {number + 1:,}: has no reference, or an empty one, to compare with")
        self.told[number] = predicted, tuple(references)

    def parts(self) -> list[Units]:
        """What was counted, text by text."""
        if not self.told:
            raise DataError("nothing to score: no text was given; give more of them")
        texts, references = zip(*(self.told[number] for number in sorted(self.told)), strict=True)
        parts = [self._overlap(name, texts, references) for name in ("bleu", "chrf")]
        parts += [self._rouge(texts, references), self._shares(texts, references)]
        return parts + [self._distinct(n, texts) for n in _DISTINCT]

    def _overlap(self, name: str, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Units:
        scorer = overlap_scorer(name, self.scoring.lowercase)
        # Text by text: given all at once, sacrebleu holds the n-grams of all references at once.
        pairs = zip(texts, references, strict=True)
        counts = [scorer._extract_corpus_statistics([text], [[one] for one in refs])[0] for text, refs in pairs]
        rows, numbers = np.array(counts, dtype=np.int64), set(map(len, references))
        scorer.num_refs = numbers.pop() if len(numbers) == 1 else -1  # -1: it varies
        return Units(overlap_formula, "text", rows, {"name": name}, {name: f"|{scorer.get_signature().format()}"})

    def _rouge(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Units:
        from rouge_score.rouge_scorer import RougeScorer
        from sklearn.utils.parallel import Parallel, delayed

        how = self.scoring
        scorer = RougeScorer(ROUGES, use_stemmer=how.stemming, tokenizer=_UnicodeWords() if how.unicode_words else None)
        told = [(self._lines(text), list(map(self._lines, refs))) for text, refs in zip(texts, references, strict=True)]
        parts = [told[start : start + _AT_ONCE] for start in range(0, len(told), _AT_ONCE)]
        jobs = Parallel(n_jobs=-1 if len(parts) > 1 else 1)(delayed(_rouge_values)(scorer, part) for part in parts)
        rows, average = np.ones((len(texts), 2 * len(ROUGES))), np.mean if how.mean_references else np.max
        rows[:, ::2] = [average(values, axis=0) for part in jobs for values in part]
        refs, stem = "mean" if how.mean_references else "best", "yes" if how.stemming else "no"
        words = "unicode" if how.unicode_words else "a-z0-9"
        reading = f"|refs:{refs}|stem:{stem}|words:{words}|measure:f1|rouge-score:{version('rouge-score')}"
        return Units(share_formula, "text", rows, {"names": ROUGES, "scale": 100}, dict.fromkeys(ROUGES, reading))

    def _lines(self, text: str) -> str:
        """A text with a sentence a line, as rougeLsum reads it; to the others a line end is a space."""
        return "\n".join(sentence.strip() for sentence in self._sentences(text))

    def _shares(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Units:
        rows = np.ones((len(texts), 4), dtype=np.int64)
        for row, text, refs in zip(rows, texts, references, strict=True):
            grams = _ngrams(text.split(), _REPEATED)
            row[0] = self._plain(text) in map(self._plain, refs)
            row[2:] = len(grams) - len(set(grams)), len(grams)
        case = "lc" if self.scoring.lowercase else "mixed"
        readings = {"exact_match": f"|case:{case}", "repetition": f"|words:{_REPEATED}"}
        return Units(share_formula, "text", rows, {"names": tuple(readings), "scale": 1}, readings)

    def _plain(self, text: str) -> str:
        return text.strip().lower() if self.scoring.lowercase else text.strip()

    def _distinct(self, n: int, texts: Sequence[str]) -> Units:
        numbers: dict[Any, int] = {}
        grams = [[numbers.setdefault(one, len(numbers)) for one in _ngrams(text.split(), n)] for text in texts]
        rows = np.array(list(zip_longest(*grams, fillvalue=-1)), dtype=np.int64).T.reshape(len(texts), -1)
        name = f"distinct{n}"
        return Units(distinct_formula, "text", rows, {"name": name}, {name: f"|words:{n}"}, resampled=False)


def _rouge_values(scorer: Any, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[list[list[float]]]:
    """Of each text, for each reference, the F1 of every kind."""
    found = [[scorer.score(one, text) for one in refs] for text, refs in pairs]
    return [[[one[name].fmeasure for name in ROUGES] for one in each] for each in found]


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


class _UnicodeWords:
    """rouge-score's way of asking for words, of any script."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())
