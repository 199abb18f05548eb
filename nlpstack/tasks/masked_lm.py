"""Masked tokens and next sentences: what a BERT reads of shards, its two losses, their scores, guesses to look at."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nlpstack.data.batch import IGNORE_INDEX, Batch, Example, pad_batch, pad_rows
from nlpstack.data.masking import Masked, RowFormat, describe_masking, mask_tokens
from nlpstack.data.packing import PackedBlocks, SentencePairs
from nlpstack.data.shards import TokenShards
from nlpstack.decode.loop import evaluating
from nlpstack.errors import ConfigError, ModelError
from nlpstack.metrics.language_model import MaskedLMScores
from nlpstack.model import BERT
from nlpstack.model.heads import HEADS, Head
from nlpstack.model.losses import linear_cross_entropy, loss_chunk, token_scores
from nlpstack.tasks.base import DocumentLayout, EvalConfig, Task, TaskConfig
from nlpstack.tokenizer import Tokenizer

ALONE = "alone"  # what a batch is about whose tokens are hidden one by one
_MASK_SALT = 3  # sets the draws of masks apart from those of order and pairs
_SHOWN_TOKENS = 24  # of the text around a guess that is shown


class Row(NamedTuple):
    """One example before tokens are hidden."""

    tokens: np.ndarray  # int64
    n_first: int  # tokens of segment 0: [CLS], the first text and its [SEP]
    label: int | None  # 0: the second text follows the first; 1: it does not; None: there is one text


@dataclass(frozen=True)
class MaskedRows:
    """Rows with tokens hidden anew in each epoch, a pure function of (seed, epoch, index)."""

    row: Callable[[int, int], Row]  # of (epoch, index), with no token hidden yet
    n_rows: int  # an epoch
    about: list[str]  # lines for the log
    form: RowFormat
    seed: int

    def masked(self, epoch: int, index: int) -> tuple[Row, Masked]:
        """A row, and what is hidden in it."""
        row, rng = self.row(epoch, index), np.random.default_rng((self.seed, epoch, index, _MASK_SALT))
        return row, mask_tokens(row.tokens, self.form, rng)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Examples as one batch, every row filled up to the longest one there may be, so that shapes do not change."""
        made = [self.masked(epoch, index) for epoch, index in examples]
        length = self.form.length
        places = np.concatenate([hidden.places + i * length for i, (_, hidden) in enumerate(made)])
        labels = np.concatenate([hidden.labels for _, hidden in made])
        room = label_room(len(examples), length, self.form.share, whole_words=self.form.whole_words)
        room = max(room, _multiple(len(places)))
        given, n_targets = {"mlm": pad_rows([labels], IGNORE_INDEX, room)[0]}, {"mlm": len(labels)}
        n_firsts = None
        if following := [row.label for row, _ in made if row.label is not None]:
            given["nsp"], n_targets["nsp"] = torch.tensor(following), len(following)
            n_firsts = [row.n_first for row, _ in made]
        batch = pad_batch([hidden.tokens for _, hidden in made], n_firsts, self.form.pad_id, length)
        return replace(batch, labels=given, places=pad_rows([places], 0, room)[0], n_targets=n_targets)

    def describe(self, n: int) -> list[str]:
        """What was done to the first `n` rows of the first epoch: tokens hidden, and how full the rows are."""
        made = [self.masked(0, index) for index in range(min(n, self.n_rows))]
        words = ((self.form.word_ids(row.tokens), hidden) for row, hidden in made)
        padding = 1 - sum(len(row.tokens) for row, _ in made) / (len(made) * self.form.length)
        masking = describe_masking(words, whole_words=self.form.whole_words)
        return [masking, f"padding: {padding:.1%} of {len(made):,} rows"]


def pair_rows(shards: TokenShards, form: RowFormat, seed: int) -> MaskedRows:
    """`[CLS] first [SEP] second [SEP]`: two texts a row, of which the second follows the first or does not."""
    pairs = SentencePairs(shards, form.length - 3, seed)

    def row(epoch: int, index: int) -> Row:
        first, second, is_next = pairs.pair(epoch, index)
        cls, sep = [form.cls_id], [form.sep_id]
        return Row(np.concatenate((cls, first, sep, second, sep)), len(first) + 2, int(not is_next))

    cut = f"sentences cut by {shards.spec.sentences}; a language it does not know by English rules"
    return MaskedRows(row, len(pairs), [cut, *pairs.report()], form, seed)


def packed_rows(shards: TokenShards, form: RowFormat, seed: int) -> MaskedRows:
    """One text a row, as long as fits, across documents (RoBERTa's FULL-SENTENCES: Liu et al. 2019, section 4.2)."""
    blocks = PackedBlocks(shards, form.length - 2, seed)

    def row(epoch: int, index: int) -> Row:
        return single_row(blocks.block(epoch, index)[:-1], form)

    about = f"rows: {len(blocks):,} an epoch, each of {form.length - 2} tokens between its marks"
    return MaskedRows(row, len(blocks), [about], form, seed)


def stretches(shards: TokenShards, form: RowFormat, seed: int) -> MaskedRows:
    """The whole text in order, cut into rows of one text, the last of which may be short; the same in every epoch."""
    size, end = form.length - 2, len(shards)
    n_rows = math.ceil(end / size)

    def row(_epoch: int, index: int) -> Row:
        return single_row(shards.read(index * size, min((index + 1) * size, end)), form)

    return MaskedRows(row, n_rows, [f"rows: {n_rows:,}, the whole text in order"], form, seed)


def single_row(tokens: np.ndarray, form: RowFormat) -> Row:
    """`[CLS] text [SEP]`."""
    whole = np.concatenate(([form.cls_id], tokens, [form.sep_id]))
    return Row(whole, len(whole), None)


def one_hidden_each(tokens: np.ndarray, start: int, stop: int, form: RowFormat) -> Batch:
    """Copies of a row, each with another one of its tokens `start` to `stop` hidden (Salazar et al. 2020, 2.3)."""
    rows, hidden = torch.arange(stop - start), torch.arange(start, stop)
    batch = pad_batch([tokens] * len(rows), None, form.pad_id, form.length)
    batch.tokens[rows, hidden] = form.mask_id
    labels = {"mlm": torch.from_numpy(tokens)[hidden]}
    return replace(batch, labels=labels, places=rows * form.length + hidden, about=ALONE)


def label_room(n_rows: int, length: int, share: float, *, whole_words: bool) -> int:
    """Labels that a batch has room for: in all likelihood enough, so that its shapes are always the same."""
    mean = share * n_rows * length
    spread = math.sqrt(mean * (4 if whole_words else 1))  # of sums of words' lengths, which vary more
    return _multiple(mean + 6 * spread)


def _multiple(n: float) -> int:
    return 64 * math.ceil(n / 64)


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
        return (pair_rows if self.config.nsp else packed_rows)(shards, self.form, seed)

    def loss(self, model: BERT, batch: Batch) -> dict[str, Tensor]:
        """Summed losses in nats: of the hidden tokens under "mlm", of the next sentences under "nsp"."""
        return masked_loss(model, batch, self.loss_chunk)

    def eval_batches(self, model: BERT, data: TokenShards, config: EvalConfig) -> Iterator[Batch]:
        """A split with tokens hidden by the evaluation's seed, then stretches of it with each token hidden alone."""
        rows = self.scored_rows(data, config)
        n_rows, n_tokens = max(1, config.batch_tokens // self.form.length), 0
        for start in range(0, rows.n_rows, n_rows):
            if config.max_tokens and n_tokens >= config.max_tokens:
                break
            batch = rows.batch([(0, index) for index in range(start, min(start + n_rows, rows.n_rows))])
            n_tokens += batch.n_tokens
            yield batch
        yield from self._alone(data, config, n_rows)

    def scored_rows(self, data: TokenShards, config: EvalConfig) -> MaskedRows:
        """What is scored of a split: the pairs of one epoch or, without next sentences, all of the text."""
        return (pair_rows if self.config.nsp else stretches)(data, self.form, config.seed)

    def _alone(self, data: TokenShards, config: EvalConfig, n_rows: int) -> Iterator[Batch]:
        """Evenly spread stretches of text, of about `eval.pseudo_tokens` tokens in all."""
        rows = stretches(data, self.form, config.seed)
        n_wanted = min(rows.n_rows, -(-config.pseudo_tokens // (self.form.length - 2)))
        for number in range(n_wanted):
            tokens = rows.row(0, number * rows.n_rows // n_wanted).tokens
            end = len(tokens) - 1  # [SEP] is not hidden, nor is [CLS]
            for start in range(1, end, n_rows):
                yield one_hidden_each(tokens, start, min(start + n_rows, end), self.form)

    def score(self, model: BERT, batch: Batch, metric: MaskedLMScores) -> None:
        """Score a batch."""
        assert model.mlm_head is not None
        assert batch.places is not None
        hidden = model(batch.tokens, mask=batch.mask, segments=batch.segments)
        states = model.mlm_head(hidden.flatten(0, 1).index_select(0, batch.places))
        labels = batch.labels["mlm"]
        nll, hits = token_scores(states, model.unembedding, labels, self.loss_chunk, model.mlm_head.bias)
        if batch.about == ALONE:
            metric.add_stretch(nll.double().sum().item(), len(labels))
            return
        counted, (n_rows, length) = labels != IGNORE_INDEX, batch.tokens.shape
        found = torch.stack([part.double() for part in (nll, counted, hits & counted)])  # (3, N)
        mlm = found.new_zeros(3, n_rows).index_add_(1, batch.places // length, found)  # (3, B)
        nsp = torch.zeros_like(mlm)
        if "nsp" in batch.labels:
            logits, follows = model.nsp_logits(hidden).float(), batch.labels["nsp"]
            losses = F.cross_entropy(logits, follows, reduction="none")
            nsp = torch.stack([losses, torch.ones_like(losses), logits.argmax(dim=-1) == follows])
        for example in torch.cat([mlm, nsp]).T.tolist():
            metric.update(example[:3], example[3:])

    def reading(self, model: BERT, config: EvalConfig) -> dict[str, object]:
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
    def write(self, model: BERT, prompts: list[list[int]]) -> list[dict[str, str]]:
        """Each stretch with the token in its middle hidden, and what the model takes it for."""
        found = []
        for ids in prompts:
            middle = len(ids) // 2
            row = single_row(np.array(ids), self.form)
            row.tokens[middle + 1] = self.form.mask_id
            with evaluating(model):
                hidden = model(torch.from_numpy(row.tokens)[None].to(model.unembedding.device))
            guess = int(model.mlm_logits(hidden[0, middle + 1]).argmax())
            before, after = self.tokenizer.decode(ids[:middle]), self.tokenizer.decode(ids[middle + 1 :])
            shown = f"{before}{self.tokenizer.mask_token}{after}"
            found.append({"prompt": shown, "text": self.tokenizer.decode([guess])})
        return found


def masked_loss(model: BERT, batch: Batch, chunk: int) -> dict[str, Tensor]:
    """Summed losses in nats, of the hidden tokens under "mlm", of the next sentences under "nsp" if there are any.

    "mlm": the sum of -log softmax(Eh + b)[token] over the hidden places only, h being the head's state there, E the
    unembedding; "nsp": the sum of -log softmax(W tanh(W'h + b') + b)[label] with the state h of [CLS]
    (Devlin et al. 2019, section 3.1).
    """
    assert model.mlm_head is not None
    assert batch.places is not None
    hidden = model(batch.tokens, mask=batch.mask, segments=batch.segments)  # (B, T, D)
    rows = model.mlm_head(hidden.flatten(0, 1).index_select(0, batch.places))  # (N, D)
    terms = {"mlm": linear_cross_entropy(rows, model.unembedding, batch.labels["mlm"], chunk, model.mlm_head.bias)}
    if "nsp" in batch.labels:
        terms["nsp"] = F.cross_entropy(model.nsp_logits(hidden).float(), batch.labels["nsp"], reduction="sum")
    return terms
