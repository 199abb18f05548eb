"""Entity-level scores: tags to spans, and how many spans are found exactly and with their type."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from nlpstack.errors import DataError
from nlpstack.metrics import Score
from nlpstack.metrics.intervals import bootstrap_totals, percentiles

Span = tuple[str, int, int]  # type, first word, the word after the last


def entity_spans(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence as conlleval reads them: an I- or E- that continues nothing starts one too."""
    return _spans(tags, starting="BIES", continuing="IE")


def strict_spans(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence by strict IOB2: an I- that continues nothing is none."""
    return _spans(tags, starting="B", continuing="I")


def _spans(tags: Sequence[str], starting: str, continuing: str) -> list[Span]:
    spans: list[Span] = []
    is_open = False  # whether the next tag may continue the last span
    for i, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix not in tuple("OBIES"):
            raise DataError(f"unknown tag {tag!r}: a tag is O or begins with B-, I-, E- or S-")
        continues = is_open and prefix in continuing and spans[-1][0] == kind
        if continues:
            spans[-1] = (kind, spans[-1][1], i + 1)
        elif prefix in starting:
            spans.append((kind, i, i + 1))
        is_open = prefix in "BI" and (continues or prefix in starting)
    return spans


class EntityScores:
    """Micro-averaged precision, recall and F1 of exact spans with their type, and the share of words tagged right.

    A share of nothing is 0, as in seqeval. `entity_f1_strict` counts `strict_spans`, the others `entity_spans`; of
    valid IOB2 these are the same.
    """

    def __init__(self) -> None:
        self._rows: list[list[float]] = []  # a sentence: what compute takes apart

    def update(self, predicted: Sequence[str], gold: Sequence[str], nll: float = 0.0) -> None:
        """Count a sentence: the tags of its words, and their summed loss in nats if there is one."""
        assert len(predicted) == len(gold)
        row = [nll, len(gold), sum(p == g for p, g in zip(predicted, gold, strict=True))]
        for read in (entity_spans, strict_spans):
            found, true = set(read(predicted)), set(read(gold))
            row += len(found & true), len(found), len(true)
        self._rows.append(row)

    def compute(self, signature: str, *, n_resamples: int, seed: int) -> dict[str, Score]:
        """Every score with its 95 % interval; sentences are resampled. `loss` is there if a loss was counted."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, 9)
        sums = np.vstack((rows.sum(axis=0), bootstrap_totals(rows, n_resamples, seed)))
        nll, words, right, hits, found, true, strict_hits, strict_found, strict_true = sums.T
        if not words[0]:
            raise DataError("nothing to score: the split has no words; give more text")
        shares = {  # name: above, below, what it is averaged over
            "entity_f1": (2 * hits, found + true, true),
            "entity_precision": (hits, found, found),
            "entity_recall": (hits, true, true),
            "entity_f1_strict": (2 * strict_hits, strict_found + strict_true, strict_true),
            "word_accuracy": (right, words, words),
        } | ({"loss": (nll, words, words)} if nll[0] else {})
        scores = {}
        for name, (above, below, n) in shares.items():
            value, *resampled = above / np.maximum(1, below)  # counts: 0 of 0 makes 0
            reading = "strict-iob2" if name == "entity_f1_strict" else "conlleval"
            made = f"{signature}|tags:{reading}|unit:sentence|resamples:{n_resamples}|seed:{seed}"
            scores[name] = Score(float(value), *percentiles(np.array(resampled)), round(n[0]), made)
        return scores


def scores_by_type(
    predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]]
) -> dict[str, tuple[float, float, float, int]]:
    """Precision, recall, F1 and the number of gold entities of each type, by conlleval's reading of tags."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for tags, gold_tags in zip(predicted, gold, strict=True):
        found, true = set(entity_spans(tags)), set(entity_spans(gold_tags))
        for column, spans in enumerate((found & true, found, true)):
            for kind, _, _ in spans:
                counts[kind][column] += 1
    return {
        kind: (hits / max(1, n_found), hits / max(1, n_true), 2 * hits / (n_found + n_true), n_true)
        for kind, (hits, n_found, n_true) in sorted(counts.items())
    }
