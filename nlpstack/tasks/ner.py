"""Entities: a tag for each word, told from the state of its first piece, and decoded over the tags that may follow."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nlpstack.data.batch import IGNORE_INDEX, Batch, pad_rows
from nlpstack.data.labelled import TaggedExample
from nlpstack.data.readers import Note
from nlpstack.errors import DataError, ModelError
from nlpstack.metrics.entities import EntityScores, entity_spans
from nlpstack.model import BERT, TransformerConfig
from nlpstack.model.heads import Head, Labels
from nlpstack.tasks.base import EvalConfig, Task, TaskConfig
from nlpstack.tasks.labelled import Encoded, EncodedRows, Frame, Result, knows, label_logits
from nlpstack.tokenizer import Tokenizer

TextOf = tuple[str, Sequence[int]]  # a text and where each of its words begins
Texts = Mapping[int, TextOf] | None  # by the numbers of their sentences
Window = tuple[int, int, int, int]  # of words: first, stop, first owned, stop of owned
# Of a window: its sentence's number, the sentence, the words it owns, and their log-probabilities (words, C).
Read = tuple[int, TaggedExample, tuple[int, int], np.ndarray]
_NEVER = -1e9  # added to the score of a tag that may not stand there


def tags_of(examples: Sequence[TaggedExample], note: Note) -> Labels:
    """The tags of the training examples in IOB2: O, then B- and I- of each type, so that every type has both."""
    counts = Counter(tag[2:] for example in examples for tag in example.tags or () if tag.startswith("B-"))
    if not counts:
        raise DataError(f"{examples[0].where}: the training data has no entity, only O tags")
    types = ", ".join(f"{kind} {n:,}" for kind, n in counts.most_common())
    note(f"entities of the training data: {types}; tags in IOB2")
    return Labels(("O", *(f"{mark}-{kind}" for kind in sorted(counts) for mark in "BI")))


def may_follow(names: Sequence[str]) -> np.ndarray:
    """(C + 1, C) bool: whether tag j may follow tag i, and in the last row whether it may begin a sentence."""
    allowed = np.ones((len(names) + 1, len(names)), dtype=bool)
    for j, tag in enumerate(names):
        if tag.startswith("I-"):
            allowed[:, j] = [before in (tag, f"B-{tag[2:]}") for before in (*names, "")]
    return allowed


def best_tags(scores: np.ndarray, allowed: np.ndarray | None) -> list[int]:
    """The tags (N,) of the highest total score among sequences that are allowed (Viterbi 1967); scores are (N, C)."""
    if allowed is None:
        return [int(tag) for tag in scores.argmax(axis=1)]
    moves = np.where(allowed, 0.0, _NEVER)
    total, came_from = scores[0] + moves[-1], []
    for row in scores[1:]:
        reached = total[:, None] + moves[:-1]  # (C before, C now)
        came_from.append(reached.argmax(axis=0))
        total = reached.max(axis=0) + row
    tags = [int(total.argmax())]
    for back in reversed(came_from):
        tags.append(int(back[tags[-1]]))
    return tags[::-1]


def windows_of(lengths: Sequence[int], room: int) -> list[Window]:
    """Windows of words: (first, stop, first owned, stop of owned), whose words have at most `room` pieces in all.

    Neighbours overlap by about a quarter of the room; of the words in both, each owns the half that is nearer to its
    middle, so that every word has one owner, where it has the most of the sentence around it.
    """
    ends = np.cumsum(lengths)
    spans, first = [], 0
    while True:
        before = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, before + room, side="right")))
        spans.append((first, stop))
        if stop >= len(lengths):
            break
        back = int(np.searchsorted(ends, int(ends[stop - 1]) - room // 4, side="left")) + 1
        first = min(max(back, first + 1), stop)
    edges = [0, *((later + stop + 1) // 2 for (_, stop), (later, _) in pairwise(spans)), len(lengths)]
    return [(*span, edges[i], edges[i + 1]) for i, span in enumerate(spans)]


class Sentences(dict[int, np.ndarray]):
    """Sentences whose windows come one by one: the log-probabilities (words, C) of those that are not whole yet."""

    def joined(self, number: int, n_words: int, owned: tuple[int, int], values: np.ndarray) -> np.ndarray | None:
        """Those of a sentence, if it is whole with the `values` of the words that this window of it owns."""
        found = self.setdefault(number, np.full((n_words, values.shape[1]), np.nan))
        found[slice(*owned)] = values
        return None if np.isnan(found).any() else self.pop(number)


class TaggedScores(EntityScores):
    """Entity scores of sentences whose windows come one by one, decoded as a task does it."""

    def __init__(self, task: "NER") -> None:
        super().__init__()
        self.task, self.pending = task, Sentences()

    def add(self, number: int, example: TaggedExample, owned: tuple[int, int], values: np.ndarray) -> None:
        """Count a window, as `NER.read` tells it; with the last one of a sentence, the sentence."""
        if (found := self.pending.joined(number, len(example.words), owned, values)) is not None:
            gold = example.tags or ()
            nll = -float(found[np.arange(len(gold)), [self.task.ids[tag] for tag in gold]].sum())
            self.update([self.task.labels.names[tag] for tag in best_tags(found, self.task.allowed)], gold, nll, number)


class NER(Task):
    """The task of tags on words (Devlin et al. 2019, section 5.3)."""

    name = "ner"
    heads: tuple[Head, ...] = ("tokens",)
    target = "entity_f1"
    scores = TaggedScores

    def __init__(self, tokenizer: Tokenizer, shape: TransformerConfig, labels: Labels, config: TaskConfig) -> None:
        self.tokenizer, self.labels, self.config = tokenizer, labels, config
        self.frame = Frame(tokenizer, shape, truncate=config.truncate)
        self.room = shape.max_seq_len - 2
        self.ids = {name: number for number, name in enumerate(labels.names)}
        self.allowed = may_follow(labels.names) if config.constrained else None

    def pieces(self, sentences: Sequence[Sequence[str]]) -> Iterator[list[list[int]]]:
        """The pieces of each word of each sentence, as in the words joined by one space; none has no piece."""
        spelled = [[word if place == 0 else f" {word}" for place, word in enumerate(words)] for words in sentences]
        texts = sorted({text for words in spelled for text in words})
        found = zip(texts, self.tokenizer.encode_batch(texts, threads=torch.get_num_threads()), strict=True)
        unknown = [self.tokenizer.unk_id if self.tokenizer.unk_id is not None else 0]
        pieces = {text: ids.tolist() or unknown for text, ids in found}
        yield from ([pieces[text] for text in words] for words in spelled)

    def encode(self, examples: Sequence[TaggedExample], what: str, note: Note) -> EncodedRows:
        """Sentences as rows; those longer than the context in windows. Says what was windowed, cut and left out."""
        known = [example for example in examples if knows(example, "tag", example.tags or (), self.ids, self.config)]
        if len(known) < len(examples):
            note(f"{what}: {len(examples) - len(known):,} sentences with types that training never saw are left out")
        rows: list[Encoded] = []
        n_windowed = n_cut = 0
        pieces_of = self.pieces([example.words for example in known])
        for number, (example, pieces) in enumerate(zip(known, pieces_of, strict=True)):
            n_cut += sum(len(ids) > self.room // 2 for ids in pieces)
            pieces = [ids[: max(1, self.room // 2)] for ids in pieces]
            windows = windows_of([len(ids) for ids in pieces], self.room)
            n_windowed += len(windows) > 1
            rows += (self._row(number, example, pieces, window) for window in windows)
        if n_windowed:
            note(f"{what}: {n_windowed:,} sentences are longer than the context and read in overlapping windows")
        if n_cut:
            note(f"{what}: {n_cut:,} words are read by their first {self.room // 2} pieces")
        return EncodedRows(examples=known, rows=rows, frame=self.frame, label=self._batch_labels)

    def _row(self, number: int, example: TaggedExample, pieces: list[list[int]], window: Window) -> Encoded:
        first, stop, own, own_stop = window
        places, tokens = [], list(self.frame.cls)
        for word in range(first, stop):
            if own <= word < own_stop:
                # A word's first piece that is more than white space carries its label.
                spelled = map(self.tokenizer.token_bytes, pieces[word])
                places.append(len(tokens) + next((at for at, piece in enumerate(spelled) if piece.strip()), 0))
            tokens += pieces[word]
        tokens += self.frame.sep
        labels = None
        if example.tags is not None:
            labels = np.full(len(tokens), IGNORE_INDEX)
            labels[places] = [self.ids[tag] for tag in example.tags[own:own_stop]]
        return Encoded(np.array(tokens), len(tokens), number, (places, labels), (own, own_stop))

    def _batch_labels(self, rows: list[Encoded]) -> tuple[dict[str, Tensor], dict[str, int]]:
        places, labels = zip(*(row.labels for row in rows), strict=True)
        if any(one is None for one in labels):
            return {}, {}
        return {"tag": pad_rows(labels, IGNORE_INDEX)}, {"tag": sum(map(len, places))}

    def loss(self, model: BERT, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy summed over words, each by its first piece."""
        logits = label_logits(model, batch).flatten(0, 1)  # (B * T, C)
        labels, smoothing = batch.labels["tag"].flatten(), self.config.label_smoothing
        sums = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=smoothing)
        return {"tag": sums}

    def metric(self, config: EvalConfig) -> TaggedScores:
        """Entity scores, not filled yet."""
        return TaggedScores(self)

    def score(self, model: BERT, batch: Batch, metric: TaggedScores) -> None:
        """Score a batch."""
        for window in self.read(model, batch):
            metric.add(*window)

    def read(self, model: BERT, batch: Batch) -> Iterator[Read]:
        """What a model says of each window of a batch."""
        values = label_logits(model, batch).log_softmax(dim=-1).double().cpu().numpy()
        if np.isnan(values).any():
            raise ModelError("the model's logits are not finite, so its weights or the dtype are broken")
        rows, examples = batch.about
        for row, value in zip(rows, values, strict=True):
            yield row.example, examples[row.example], row.words, value[row.labels[0]]

    def reading(self, model: BERT, config: EvalConfig) -> dict[str, object]:
        """How tags are decoded, and the context."""
        return {"decoding": "viterbi" if self.config.constrained else "argmax", "context": self.frame.length}

    def results(self, model: Any, rows: EncodedRows, budget: int, texts: Texts = None) -> Iterator[Result]:
        """Of each sentence its number, `tags` and `entities`; `texts` are those that words were cut from.

        An entity has `start` and `end` in characters, `label`, `text` and `score`: the mean probability of the tags of
        its words, each taken by itself. Words without a text are joined by one space.
        """
        pending, device = Sentences(), next(model.parameters()).device
        for batch in rows.batches(budget):
            for number, example, owned, part in self.read(model, batch.to(device)):
                words = example.words
                if (values := pending.joined(number, len(words), owned, part)) is not None:
                    spaced = " ".join(words), np.cumsum([0, *(len(word) + 1 for word in words)]).tolist()
                    tags = best_tags(values, self.allowed)
                    yield number, self.entities(words, tags, values, (texts or {}).get(number, spaced))

    def entities(self, words: Sequence[str], tags: list[int], values: np.ndarray, text_of: TextOf) -> dict[str, Any]:
        """`tags` and `entities` of a sentence with log-probabilities (words, C)."""
        names = [self.labels.names[tag] for tag in tags]
        shares = np.exp(values[np.arange(len(tags)), tags])
        text, starts = text_of
        found = []
        for kind, first, stop in entity_spans(names):
            start, end = starts[first], starts[stop - 1] + len(words[stop - 1])
            score = float(shares[first:stop].mean())
            found.append({"start": start, "end": end, "label": kind, "text": text[start:end], "score": score})
        return {"tags": names, "entities": found}
