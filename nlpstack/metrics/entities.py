"""Entity-level scores: tags to spans, and how many spans are found exactly and with their type."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from nlpstack.errors import DataError
from nlpstack.metrics import Units, Values, mean_formula, share

Span = tuple[str, int, int]  # type, first word, the word after the last


def entity_spans(tags: Sequence[str], *, starting: str = "BIES", continuing: str = "IE") -> list[Span]:
    """The entities of a sentence as conlleval reads them: an I- or E- that continues nothing starts one too."""
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


strict_spans = partial(entity_spans, starting="B", continuing="I")  # by strict IOB2: a stray I- is no entity


def overlaps(found: Sequence[Span], true: Sequence[Span], *, typed: bool) -> int:
    """How many spans found can be paired off with a true one that shares a word, each with one; `typed`: and type."""
    # They come in order and do not overlap among themselves, so that taking the first partner is best.
    n, left = 0, list(true)
    for kind, first, stop in found:
        sharing = [place for place, (_, begin, end) in enumerate(left) if begin < stop and first < end]
        if fits := [place for place in sharing if not typed or left[place][0] == kind]:
            n, left = n + 1, left[fits[0] + 1 :]
    return n


def entity_formula(rows: np.ndarray, counts: np.ndarray) -> Values:
    """The scores of rows as `EntityScores` counts them; a share of nothing is 0, as in seqeval."""
    words, right, found, true, hits, strict_found, strict_true, strict_hits, bounds, typed, touched = (counts @ rows).T
    both = found + true
    return {
        "entity_f1": (share(2 * hits, both), true),
        "entity_precision": (share(hits, found), found),
        "entity_recall": (share(hits, true), true),
        "entity_f1_strict": (share(2 * strict_hits, strict_found + strict_true), strict_true),
        "entity_f1_boundary": (share(2 * bounds, both), true),
        "entity_f1_type": (share(2 * typed, both), true),
        "entity_f1_partial": (share(bounds + touched, both), true),
        "word_accuracy": (share(right, words), words),
    }


class EntityScores:
    """Micro-averaged precision, recall and F1 of exact spans with their type, and the share of words tagged right.

    `entity_f1_strict` counts `strict_spans`, the others `entity_spans`; of valid IOB2 these are the same. Beside them
    the views of SemEval 2013, task 9 (Segura-Bedmar et al., section 4): `boundary` asks for the exact words whatever
    the type, `type` for a common word and the type, `partial` counts exact words 1 and a common word one half.
    """

    def __init__(self) -> None:
        self._sentences: dict[int, tuple[list[int], float | None]] = {}  # number -> counts, loss in nats
        self.told: dict[int, tuple[Sequence[str], Sequence[str]]] = {}  # number -> predicted and true tags

    def update(self, predicted: Sequence[str], gold: Sequence[str], nll: float | None = None, number: int = -1) -> None:
        """Count a sentence: the tags of its words, and their summed loss in nats if there is one."""
        assert len(predicted) == len(gold)
        number = len(self.told) if number < 0 else number
        row = [len(gold), sum(p == g for p, g in zip(predicted, gold, strict=True))]
        for read in (strict_spans, entity_spans):
            found, true = read(predicted), read(gold)
            row[2:2] = len(found), len(true), len(set(found) & set(true))
        bounds = {span[1:] for span in found} & {span[1:] for span in true}
        rest = [[span for span in spans if span[1:] not in bounds] for spans in (found, true)]
        row += len(bounds), overlaps(found, true, typed=True), len(bounds) + overlaps(*rest, typed=False)
        self._sentences[number] = row, nll
        self.told[number] = predicted, gold

    def parts(self) -> list[Units]:
        """What was counted, sentence by sentence; `loss` is there if a loss was counted."""
        sentences = [self._sentences[number] for number in sorted(self._sentences)]
        counts = np.array([row for row, _ in sentences], dtype=np.int64).reshape(-1, 11)
        losses = [loss for _, loss in sentences if loss is not None]
        if not counts[:, 0].any():
            raise DataError("nothing to score: the split has no words; give more text")
        readings = dict.fromkeys(entity_formula(counts[:1], counts[:1, :1]), "|tags:conlleval")
        readings["entity_f1_strict"] = "|tags:strict-iob2"
        parts = [Units(entity_formula, "sentence", counts, readings=readings)]
        if len(losses) == len(counts):
            parts.append(Units(mean_formula, "sentence", np.column_stack((losses, counts[:, 0]))))
        return parts

    def details(self) -> dict[str, Any]:
        """Precision, recall and F1 of each type, with the number of its true entities."""
        columns = zip(*self.told.values(), strict=True)  # predicted, true
        found, true = ({(i, *span) for i, tags in enumerate(one) for span in entity_spans(tags)} for one in columns)
        hits, n_found, n_true = (Counter(kind for _, kind, _, _ in spans) for spans in (found & true, found, true))
        table = {}
        for kind in sorted(n_found | n_true):
            shares = {"precision": hits[kind] / max(1, n_found[kind]), "recall": hits[kind] / max(1, n_true[kind])}
            table[kind] = {**shares, "f1": 2 * hits[kind] / (n_found[kind] + n_true[kind]), "n": n_true[kind]}
        return {"per_class": table}
