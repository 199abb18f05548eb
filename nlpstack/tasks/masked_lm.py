"""Masked tokens and next sentences: the two losses of a BERT, their scores, and guesses to look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlpstack.data.batch import IGNORE_INDEX, Batch, Scored
from nlpstack.data.shards import TokenShards
from nlpstack.decode.loop import evaluating
from nlpstack.errors import ConfigError, ModelError
from nlpstack.metrics.language_model import MaskedLMScores
from nlpstack.model import BERT
from nlpstack.model.heads import HEADS, Head
from nlpstack.model.losses import linear_cross_entropy, loss_chunk, token_scores
from nlpstack.tasks import masked_rows
from nlpstack.tasks.base import DocumentLayout, EvalConfig, Task, TaskConfig
from nlpstack.tasks.masked_rows import MaskedRows, PackedRows, PairRows, RowFormat, Stretches
from nlpstack.tokenizer import Tokenizer

_SHOWN_TOKENS = 24  # of the text around a guess that is shown


@dataclass(frozen=True, kw_only=True)
class ScoredBatch(Scored):
    """What is scored together: examples with their hidden tokens, or one stretch's tokens, each hidden alone."""

    alone: bool


class MaskedLM(Task):
    """The task of a BERT's pretraining (Devlin et al. 2019, section 3.1), without next sentences RoBERTa's."""

    name = "masked_lm"
    target = "loss"
    scores = MaskedLMScores

    def __init__(self, tokenizer: Tokenizer, config: TaskConfig, length: int, *, language: str = "en") -> None:
        """`length` is that of a row, the model's context. ModelError if the tokenizer lacks a token that is needed."""
        marks: dict[str, Any] = {name: getattr(tokenizer, name) for name in ("cls_id", "sep_id", "mask_id")}
        if lacks := [f"[{name[:-3].upper()}]" for name, token in marks.items() if token is None]:
            cure = "take one that has, or train one with 'nlpstack tokenizer train'"
            raise ModelError(f"the tokenizer has no {' and no '.join(lacks)} token, which a BERT's task needs; {cure}")
        self.tokenizer, self.config = tokenizer, config
        self.heads: tuple[Head, ...] = HEADS if config.nsp else ("mlm",)  # that the task trains
        self.predicted_share = config.mask_share
        self.loss_chunk = loss_chunk(tokenizer.vocab_size)
        self.form = RowFormat(
            **marks,
            pad_id=tokenizer.pad_id or 0,
            random_ids=np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.special_ids)),
            word_ids=tokenizer.word_ids,
            share=config.mask_share,
            whole_words=config.whole_words,
            length=length,
        )
        self.layout = DocumentLayout(language=language) if config.nsp else DocumentLayout(eos_id=tokenizer.sep_id)

    def examples(self, shards: TokenShards, seed: int) -> MaskedRows:
        """A split as training examples: pairs of texts or, without next sentences, packed rows."""
        rows = PairRows(shards, self.form, seed) if self.config.nsp else PackedRows(shards, self.form, seed)
        return MaskedRows(rows, self.form, seed)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Summed losses in nats: of the hidden tokens under "mlm", of the next sentences under "nsp"."""
        return masked_loss(model, batch, self.loss_chunk)

    def eval_batches(self, model: nn.Module, data: TokenShards, config: EvalConfig) -> Iterator[ScoredBatch]:
        """A split with tokens hidden by the evaluation's seed, then stretches of it with each token hidden alone."""
        rows = self.scored_rows(data, config)
        n_rows, n_tokens = max(1, config.batch_tokens // self.form.length), 0
        for start in range(0, len(rows.rows), n_rows):
            if config.max_tokens and n_tokens >= config.max_tokens:
                break
            batch = rows.batch([(0, index) for index in range(start, min(start + n_rows, len(rows.rows)))])
            n_tokens += batch.n_tokens
            yield ScoredBatch(batch=batch, alone=False)
        yield from self._alone(data, config, n_rows)

    def scored_rows(self, data: TokenShards, config: EvalConfig) -> MaskedRows:
        """What is scored of a split: the pairs of one epoch or, without next sentences, all of the text."""
        rows = PairRows(data, self.form, config.seed) if self.config.nsp else Stretches(data, self.form)
        return MaskedRows(rows, self.form, config.seed)

    def _alone(self, data: TokenShards, config: EvalConfig, n_rows: int) -> Iterator[ScoredBatch]:
        """Evenly spread stretches of text, of about `eval.pseudo_tokens` tokens in all."""
        stretches = Stretches(data, self.form)
        n_wanted = min(len(stretches), -(-config.pseudo_tokens // (self.form.length - 2)))
        for number in range(n_wanted):
            tokens = stretches.row(0, number * len(stretches) // n_wanted).tokens
            end = len(tokens) - 1  # [SEP] is not hidden, nor is [CLS]
            for start in range(1, end, n_rows):
                batch = masked_rows.one_hidden_each(tokens, start, min(start + n_rows, end), self.form)
                yield ScoredBatch(batch=batch, alone=True)

    def score(self, model: nn.Module, batch: ScoredBatch, metric: MaskedLMScores) -> None:
        """Score a batch."""
        assert isinstance(model, BERT)
        assert model.mlm_head is not None
        given = batch.batch
        assert given.places is not None
        hidden = model(given.tokens, mask=given.mask, segments=given.segments)
        states = model.mlm_head(hidden.flatten(0, 1).index_select(0, given.places))
        labels = given.labels["mlm"]
        nll, hits = token_scores(states, model.unembedding, labels, self.loss_chunk, model.mlm_head.bias)
        if batch.alone:
            metric.add_stretch(nll.double().sum().item(), len(labels))
            return
        counted, (n_rows, length) = labels != IGNORE_INDEX, given.tokens.shape
        found = torch.stack([part.double() for part in (nll, counted, hits & counted)])  # (3, N)
        mlm = found.new_zeros(3, n_rows).index_add_(1, given.places // length, found)  # (3, B)
        nsp = torch.zeros_like(mlm)
        if "nsp" in given.labels:
            logits, follows = model.nsp_logits(hidden).float(), given.labels["nsp"]
            losses = F.cross_entropy(logits, follows, reduction="none")
            nsp = torch.stack([losses, torch.ones_like(losses), logits.argmax(dim=-1) == follows])
        for example in torch.cat([mlm, nsp]).T.tolist():
            metric.update(example[:3], example[3:])

    def reading(self, model: nn.Module, config: EvalConfig) -> dict[str, object]:
        """What is hidden and how, the context, and how much of the text is scored."""
        if config.window or config.stride:
            raise ConfigError("eval.window and eval.stride are of a GPT's perplexity; a BERT reads rows of its context")
        hidden = {"mask": f"{self.config.mask_share:g}", "whole_words": self.config.whole_words}
        rows = {"nsp": self.config.nsp, "context": self.form.length, "max_tokens": config.max_tokens or "all"}
        return {**hidden, **rows, "pseudo_tokens": config.pseudo_tokens, "mask_seed": config.seed}

    def prompts(self, data: TokenShards, n: int) -> list[list[int]]:
        """`n` stretches of a few tokens from evenly spread places of a split."""
        return [data.read(at, at + _SHOWN_TOKENS).tolist() for at in (len(data) * i // n for i in range(n))]

    @torch.no_grad()
    def write(self, model: nn.Module, prompts: list[list[int]]) -> list[dict[str, str]]:
        """Each stretch with the token in its middle hidden, and what the model takes it for."""
        assert isinstance(model, BERT)
        found = []
        for ids in prompts:
            middle = len(ids) // 2
            row = masked_rows.single_row(np.array(ids), self.form)
            row.tokens[middle + 1] = self.form.mask_id
            with evaluating(model):
                hidden = model(torch.from_numpy(row.tokens)[None].to(model.unembedding.device))
            guess = int(model.mlm_logits(hidden[0, middle + 1]).argmax())
            before, after = self.tokenizer.decode(ids[:middle]), self.tokenizer.decode(ids[middle + 1 :])
            shown = f"{before}{self.tokenizer.mask_token}{after}"
            found.append({"prompt": shown, "text": self.tokenizer.decode([guess])})
        return found


def masked_loss(model: nn.Module, batch: Batch, chunk: int) -> dict[str, Tensor]:
    """Summed losses in nats, of the hidden tokens under "mlm", of the next sentences under "nsp" if there are any.

    "mlm": the sum of -log softmax(Eh + b)[token] over the hidden places only, h being the head's state there, E the
    unembedding; "nsp": the sum of -log softmax(W tanh(W'h + b') + b)[label] with the state h of [CLS]
    (Devlin et al. 2019, section 3.1).
    """
    assert isinstance(model, BERT)
    assert model.mlm_head is not None
    assert batch.places is not None
    hidden = model(batch.tokens, mask=batch.mask, segments=batch.segments)  # (B, T, D)
    rows = model.mlm_head(hidden.flatten(0, 1).index_select(0, batch.places))  # (N, D)
    terms = {"mlm": linear_cross_entropy(rows, model.unembedding, batch.labels["mlm"], chunk, model.mlm_head.bias)}
    if "nsp" in batch.labels:
        terms["nsp"] = F.cross_entropy(model.nsp_logits(hidden).float(), batch.labels["nsp"], reduction="sum")
    return terms
