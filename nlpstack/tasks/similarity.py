"""How far the cosines of pairs of texts follow what people say of their likeness; nothing is trained."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from nlpstack.data.labelled import TextExample
from nlpstack.data.readers import Note
from nlpstack.errors import DataError
from nlpstack.metrics.similarity import SimilarityScores
from nlpstack.model import LanguageModel
from nlpstack.model.heads import mean_pooled
from nlpstack.tasks.base import EvalConfig, Task, TaskConfig
from nlpstack.tasks.labelled import Encoded, EncodedRows, Frame, RowBatch


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

    def score(self, model: Any, batch: RowBatch, metric: SimilarityScores) -> None:
        """Count the vector of each text."""
        given = batch.batch
        hidden = model.transformer(given.tokens, mask=given.mask, segments=given.segments)  # (B, T, D)
        vectors = mean_pooled(hidden.float(), given.mask).cpu().numpy()
        for row, vector in zip(batch.rows, vectors, strict=True):
            metric.add(row.example, vector, batch.examples[row.example // 2].label)

    def reading(self, model: nn.Module, config: EvalConfig) -> dict[str, object]:
        """Pooling, layer, context, and whether texts are cut to it."""
        length, cut = self.frame.length, self.frame.truncate
        return {"cosine": "mean-pooled", "layer": "last", "context": length, "truncate": cut}
