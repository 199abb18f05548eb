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
from nlpstack.data.packing import PackedBlocks, Pair, SentencePairs
from nlpstack.data.shards import TokenShards
from nlpstack.decode.loop import evaluating
from nlpstack.errors import ConfigError, ModelError
from nlpstack.metrics.language_model import MaskedLMScores
from nlpstack.model import BERT
from nlpstack.model.heads import HEADS, Head
from nlpstack.model.losses import linear_cross_entropy, loss_chunk, token_scores
from nlpstack.tasks.base import DocumentLayout, EvalConfig, Task, TaskConfig
from nlpstack.tokenizer import Tokenizer

MASKED, RANDOM, KEPT = range(3)  # what a chosen token becomes: the mask, a random token, itself
_SHARES = (0.8, 0.1, 0.1)  # Devlin et al. 2019, 3.1, A.1
ALONE = "alone"  # what a batch is about whose tokens are hidden one by one
_MASK_SALT = 3  # sets the draws of masks apart from those of order and pairs
_SHOWN_TOKENS = 24  # of the text around a guess that is shown


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """How rows are made: the tokenizer's marks, and how much is hidden."""

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    random_ids: np.ndarray  # what a hidden token may be replaced by
    word_ids: Callable[[np.ndarray], np.ndarray]  # tokens (T,) -> each one's word (T,), -1 at special ones
    share: float
    whole_words: bool
    length: int  # of a row, its special tokens included


class Masked(NamedTuple):
    """A row with some of its tokens hidden."""

    tokens: np.ndarray  # (T,) int64: what the model sees
    places: np.ndarray  # (n,) int64, ascending: where it has to guess
    labels: np.ndarray  # (n,) int64: the tokens that stood there
    kinds: np.ndarray  # (n,) uint8: MASKED, RANDOM or KEPT, as drawn; a random token may be the one that stood there


def mask_tokens(tokens: np.ndarray, form: RowFormat, rng: np.random.Generator) -> Masked:
    """Choose each token, or each word with all its tokens, with probability `share`, and hide what is chosen.

    `tokens` (T,) int64 stays; special ones, in no word, are never chosen; shape and words say how much `rng` draws.
    """
    words = form.word_ids(tokens)
    n_units = int(words.max(initial=-1)) + 1 if form.whole_words else len(tokens)
    unit = words if form.whole_words else np.where(words >= 0, np.arange(len(tokens)), -1)
    chosen = np.append(rng.random(n_units) < form.share, False)  # the last one is of special tokens, whose unit is -1
    places = np.flatnonzero(chosen[unit])
    kinds = np.searchsorted(np.cumsum(_SHARES[:-1]), rng.random(len(tokens)), side="right").astype(np.uint8)
    # Scaled floats: rng.integers draws again where it would be uneven, so that how much it draws is left to chance.
    drawn = form.random_ids[(rng.random(len(tokens)) * len(form.random_ids)).astype(np.int64)]
    labels, kinds = tokens[places], kinds[places]
    seen = tokens.copy()
    seen[places] = np.select([kinds == MASKED, kinds == RANDOM], [form.mask_id, drawn[places]], labels)
    return Masked(seen, places, labels, kinds)


class Row(NamedTuple):
    """One example before tokens are hidden."""

    tokens: np.ndarray  # int64
    n_first: int  # tokens of segment 0: [CLS], the first text and its [SEP]
    label: int | None  # 0: the second text follows the first; 1: it does not; None: there is one text


@dataclass(frozen=True)
class MaskedRows:
    """Rows with tokens hidden anew in each epoch, a pure function of (seed, epoch, index)."""

    text: Callable[[int, int], np.ndarray | Pair]  # of (epoch, index)
    n_rows: int  # an epoch
    about: list[str]  # lines for the log
    form: RowFormat
    seed: int

    def row(self, epoch: int, index: int) -> Row:
        """A row with no token hidden yet."""
        return marked(self.text(epoch, index), self.form)

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
        n_tokens = sum(int((self.form.word_ids(row.tokens) >= 0).sum()) for row, _ in made)  # that could be chosen
        kinds = np.bincount(np.concatenate([hidden.kinds for _, hidden in made]), minlength=3)
        n_chosen = int(kinds.sum())
        masked, random, kept = (100 * kinds / max(1, n_chosen)).tolist()
        how = ", by whole words" * self.form.whole_words
        masking = f"masking: {100 * n_chosen / max(1, n_tokens):.1f} % of {n_tokens:,} tokens are predicted{how}"
        seen = f"of these {masked:.1f} % are [MASK], {random:.1f} % random, {kept:.1f} % kept"
        padding = 1 - sum(len(row.tokens) for row, _ in made) / (len(made) * self.form.length)
        return [f"{masking}; {seen}", f"padding: {padding:.1%} of {len(made):,} rows"]


def pair_rows(shards: TokenShards, form: RowFormat, seed: int) -> MaskedRows:
    """Two texts a row, of which the second follows the first or does not."""
    pairs = SentencePairs(shards, form.length - 3, seed)
    cut = f"sentences cut by {shards.spec.sentences}; a language it does not know by English rules"
    return MaskedRows(pairs.pair, len(pairs), [cut, *pairs.report()], form, seed)


def packed_rows(shards: TokenShards, form: RowFormat, seed: int) -> MaskedRows:
    """One text a row, as long as fits, across documents (RoBERTa's FULL-SENTENCES: Liu et al. 2019, section 4.2)."""
    blocks = PackedBlocks(shards, form.length - 2, seed)
    about = f"rows: {len(blocks):,} an epoch, each of {form.length - 2} tokens between its marks"
    return MaskedRows(lambda epoch, index: blocks.block(epoch, index)[:-1], len(blocks), [about], form, seed)


def stretches(shards: TokenShards, form: RowFormat, seed: int) -> MaskedRows:
    """The whole text in order, cut into rows of one text, the last of which may be short; the same in every epoch."""
    size = form.length - 2
    n_rows = math.ceil(len(shards) / size)
    about = f"rows: {n_rows:,}, the whole text in order"
    return MaskedRows(lambda _, index: shards.read(index * size, (index + 1) * size), n_rows, [about], form, seed)


def marked(text: np.ndarray | Pair, form: RowFormat) -> Row:
    """`[CLS] text [SEP]`, of a pair `[CLS] first [SEP] second [SEP]`."""
    cls, sep = [form.cls_id], [form.sep_id]
    if isinstance(text, Pair):
        return Row(np.concatenate((cls, text.first, sep, text.second, sep)), len(text.first) + 2, int(not text.is_next))
    return Row(np.concatenate((cls, text, sep)), len(text) + 2, None)


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

    def eval_batches(self, model: Any, data: TokenShards, config: EvalConfig) -> Iterator[Batch]:
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
    def write(self, model: Any, prompts: list[list[int]]) -> list[dict[str, str]]:
        """Each stretch with the token in its middle hidden, and what the model takes it for."""
        found = []
        for ids in prompts:
            middle = len(ids) // 2
            row = marked(np.array(ids), self.form)
            row.tokens[middle + 1] = self.form.mask_id
            with evaluating(model):
                hidden = model(torch.from_numpy(row.tokens)[None].to(model.unembedding.device))
            guess = int(model.mlm_logits(hidden[0, middle + 1]).argmax())
            before, text, after = map(self.tokenizer.decode, (ids[:middle], [guess], ids[middle + 1 :]))
            found.append({"prompt": f"{before}{self.tokenizer.mask_token}{after}", "text": text})
        return found


def masked_loss(model: BERT, batch: Batch, chunk: int) -> dict[str, Tensor]:
    """Summed losses in nats, of the hidden tokens under "mlm", of the next sentences under "nsp" if there are any.

    "mlm": -log softmax(Eh + b)[token] of the hidden places, h being the head's state there, E the unembedding; "nsp":
    -log softmax(W tanh(W'h + b') + b)[label] with the state h of [CLS] (Devlin et al. 2019, section 3.1).
    """
    assert model.mlm_head is not None
    assert batch.places is not None
    hidden = model(batch.tokens, mask=batch.mask, segments=batch.segments)  # (B, T, D)
    rows = model.mlm_head(hidden.flatten(0, 1).index_select(0, batch.places))  # (N, D)
    terms = {"mlm": linear_cross_entropy(rows, model.unembedding, batch.labels["mlm"], chunk, model.mlm_head.bias)}
    if "nsp" in batch.labels:
        terms["nsp"] = F.cross_entropy(model.nsp_logits(hidden).float(), batch.labels["nsp"], reduction="sum")
    return terms
