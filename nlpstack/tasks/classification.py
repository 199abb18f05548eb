"""Labels of texts and of pairs, told from the pooled vector of [CLS]; and how alike the texts of a pair are."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nlpstack.data.batch import Batch
from nlpstack.data.labelled import TextExample, classes_of
from nlpstack.data.readers import Note
from nlpstack.errors import ConfigError, DataError
from nlpstack.metrics.classification import LabelScores, SimilarityScores
from nlpstack.model import BERT, LanguageModel, TransformerConfig
from nlpstack.model.heads import Head, Labels, mean_pooled
from nlpstack.tasks.base import EvalConfig, Task, TaskConfig
from nlpstack.tasks.labelled import Encoded, EncodedRows, Frame, Result, knows, label_logits
from nlpstack.tokenizer import Tokenizer

_TARGETS = {"single": "accuracy", "multi": "f1_micro", "regression": "spearman"}


def labels_of(examples: Sequence[TextExample], note: Note) -> Labels:
    """What the labels of the training examples are; ConfigError if there is only one."""
    kinds = {type(example.label) for example in examples}
    if kinds == {float}:
        note("labels: numbers, so this is regression, of a squared error")
        return Labels(("score",), "regression")
    multi = kinds == {tuple}
    counts = Counter(name for e in examples for name in (e.label if isinstance(e.label, tuple) else (e.label,)))
    names = sorted(counts)  # type: ignore[type-var]
    if len(names) < 2:
        raise DataError(f"{examples[0].where}: the training data has one label only ({', '.join(map(str, names))})")
    what = "any number of them a text" if multi else "one a text"
    most, least = counts.most_common()[0], counts.most_common()[-1]
    note(f"labels: {len(names)}, {what}; from {least[0]} ({least[1]:,}) to {most[0]} ({most[1]:,})")
    return Labels(tuple(map(str, names)), "multi" if multi else "single")


class Classification(Task):
    """The task of labels on texts (Devlin et al. 2019, section 4.1)."""

    name = "classification"
    scores = LabelScores
    heads: tuple[Head, ...] = ("pooler", "sequence")

    def __init__(self, tokenizer: Tokenizer, shape: TransformerConfig, labels: Labels, config: TaskConfig) -> None:
        self.tokenizer, self.labels, self.config = tokenizer, labels, config
        self.target = _TARGETS[labels.problem]
        self.frame = Frame(tokenizer, shape, truncate=config.truncate)
        self.ids = {name: number for number, name in enumerate(labels.names)}
        self.weights: Tensor | None = None  # (C,) of the classes, in the loss
        if labels.problem != "single" and (config.class_weights != "none" or config.label_smoothing):
            fault = "task.class_weights and task.label_smoothing are of labels of which each text has one"
            there = "any number of them a text" if labels.problem == "multi" else "numbers"
            raise ConfigError(f"{fault}; this data has {there}")

    def weigh(self, examples: Sequence[TextExample]) -> None:
        """With `class_weights = "balanced"`, weigh classes by how rare they are: n / (C n_c), scikit-learn's rule."""
        if self.config.class_weights == "balanced":
            counts = Counter(str(example.label) for example in examples)
            self.weights = torch.tensor([len(examples) / (len(self.ids) * counts[name]) for name in self.labels.names])

    def encode(self, examples: Sequence[TextExample], what: str, note: Note) -> EncodedRows:
        """Examples as rows; a label that training never saw is an error, or (`unknown_labels`) left out and counted."""
        known = [e for e in examples if knows(e, "label", classes_of(e), self.ids, self.config)]
        if len(known) < len(examples):
            note(f"{what}: {len(examples) - len(known):,} examples with labels that training never saw are left out")
        framed = self.frame.rows([(e.where, e.text, e.text_b) for e in known])
        rows = [Encoded(tokens, n_first, n, self.label(known[n])) for n, (tokens, n_first) in enumerate(framed)]
        self.frame.note_cuts(what, note)
        return EncodedRows(examples=known, rows=rows, frame=self.frame, label=self._batch_labels)

    def label(self, example: TextExample) -> Any:
        """What an example's label is to the model: a number, or of several labels (C,) bool; None if it has none."""
        if example.label is None:
            return None
        if isinstance(example.label, tuple):
            return np.isin(list(self.ids), example.label)  # (C,)
        return float(example.label) if self.labels.problem == "regression" else self.ids[str(example.label)]

    def _batch_labels(self, rows: list[Encoded]) -> tuple[dict[str, Tensor], dict[str, int]]:
        if any(row.labels is None for row in rows):
            return {}, {}
        dtype = torch.int64 if self.labels.problem == "single" else torch.float32
        return {"label": torch.tensor(np.array([row.labels for row in rows]), dtype=dtype)}, {"label": len(rows)}

    def loss(self, model: BERT, batch: Batch) -> dict[str, Tensor]:
        """The loss summed over examples: cross-entropy, of several labels the mean over them, or the squared error."""
        logits = label_logits(model, batch)
        labels = batch.labels["label"]
        if self.labels.problem == "multi":
            return {"label": F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1).sum()}
        if self.labels.problem == "regression":
            return {"label": ((logits[:, 0] - labels) ** 2).sum()}
        weights = self.weights.to(logits.device) if self.weights is not None else None
        smoothing = self.config.label_smoothing
        return {"label": F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)}

    def metric(self, config: EvalConfig) -> LabelScores:
        """The scores that go with the kind of labels, not filled yet."""
        problem = self.labels.problem
        return LabelScores(() if problem == "regression" else self.labels.names, single=problem == "single")

    def score(self, model: BERT, batch: Batch, metric: LabelScores) -> None:
        """Score a batch."""
        logits, labels = label_logits(model, batch), batch.labels["label"]
        if self.labels.problem == "regression":
            columns: list[Any] = [logits[:, 0], labels]
        elif self.labels.problem == "multi":
            losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
            columns = [logits.sigmoid() >= self.config.threshold, labels.bool(), losses]
        else:
            share, chosen = logits.softmax(dim=1).max(dim=1)
            columns = [chosen, labels, F.cross_entropy(logits, labels, reduction="none"), share]
        for row, *values in zip(batch.about[0], *(column.tolist() for column in columns), strict=True):
            metric.update(*values, number=row.example)  # type: ignore[misc]  # there are four values at most

    def reading(self, model: BERT, config: EvalConfig) -> dict[str, object]:
        """Kind and number of labels, threshold, context, and whether texts are cut to it."""
        threshold = {"threshold": f"{self.config.threshold:g}"} if self.labels.problem == "multi" else {}
        labels = {"labels": f"{self.labels.problem}:{len(self.labels.names)}", **threshold}
        return {**labels, "context": self.frame.length, "truncate": self.config.truncate}

    def results(self, model: Any, rows: EncodedRows, budget: int, texts: object = None) -> Iterator[Result]:
        """Of each example its number, `label` and `probabilities`; `texts` are not needed."""
        device, problem = next(model.parameters()).device, self.labels.problem
        for batch in rows.batches(budget):
            logits = label_logits(model, batch.to(device))
            shares = logits.softmax(dim=1) if problem == "single" else logits.sigmoid()
            for row, values, logit in zip(batch.about[0], shares.tolist(), logits.tolist(), strict=True):
                if problem == "regression":
                    yield row.example, {"label": logit[0]}
                    continue
                named = dict(zip(self.labels.names, values, strict=True))
                chosen = [name for name, share in named.items() if share >= self.config.threshold]
                label = max(named, key=named.__getitem__) if problem == "single" else chosen
                yield row.example, {"label": label, "probabilities": named}


class Similarity(Task):
    """The task of pairs of texts with a score (Cer et al. 2017); of a text the mean of its tokens' last states."""

    name = "similarity"
    target = "spearman"
    scores = SimilarityScores

    def __init__(self, model: LanguageModel, config: TaskConfig) -> None:
        self.tokenizer = model.tokenizer
        self.frame = Frame(model.tokenizer, model.config, truncate=config.truncate)

    def encode(self, examples: Sequence[TextExample], what: str, note: Note) -> EncodedRows:
        """Two rows for each pair, one behind the other; each pair must have a number."""
        texts: list[tuple[str, str, str | None]] = []
        for example in examples:
            if example.text_b is None or not isinstance(example.label, float):
                raise DataError(f"{example.where}: similarity needs 'text_a', 'text_b' and 'score', a number")
            texts += [(example.where, example.text, None), (example.where, example.text_b, None)]
        rows = [Encoded(tokens, n_first, n) for n, (tokens, n_first) in enumerate(self.frame.rows(texts))]
        self.frame.note_cuts(what, note)
        return EncodedRows(examples=examples, rows=rows, frame=self.frame, label=lambda rows: ({}, {}))

    def score(self, model: Any, batch: Batch, metric: SimilarityScores) -> None:
        """Count the vector of each text."""
        rows, examples = batch.about
        hidden = model.transformer(batch.tokens, mask=batch.mask, segments=batch.segments)  # (B, T, D)
        vectors = mean_pooled(hidden.float(), batch.mask).cpu().numpy()
        for row, vector in zip(rows, vectors, strict=True):
            metric.add(row.example, vector, examples[row.example // 2].label)

    def reading(self, model: BERT, config: EvalConfig) -> dict[str, object]:
        """Pooling, layer, context, and whether texts are cut to it."""
        length, cut = self.frame.length, self.frame.truncate
        return {"cosine": "mean-pooled", "layer": "last", "context": length, "truncate": cut}
