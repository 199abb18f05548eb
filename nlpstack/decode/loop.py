"""Prompts in, text out: batches of rows decoded together, each as if it were alone, by drawing or by beam search."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor, nn

from nlpstack.decode.next_token import TokenRules, choose, likeliest
from nlpstack.decode.sampling import Sampling
from nlpstack.decode.text import Generation, Given, Prompt, Text, Timing, encode_prompts
from nlpstack.errors import ConfigError
from nlpstack.model import GPT, KVCache
from nlpstack.tokenizer.base import Tokenizer


def decode(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Given],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    on_text: Callable[[str], None] | None = None,
) -> tuple[list[Generation], Timing]:
    """What the model writes after each prompt, a text or a text and its tokens, in their order, and how long it took.

    Each prompt has as many entries, one after the other, as there are samples. A row depends on its prompt, its place
    in `prompts`, its number among the samples and the sampling alone, not on the rows decoded beside it. At most
    `batch_size` rows are decoded at a time, or one prompt's, each sample or beam being a row. `on_text` is given the
    text of a single prompt as it grows, in pieces that make up the text; that of beam search comes in one piece.

    Beam search holds prompt and new tokens in the model's context: DataError where they would not fit. Otherwise a
    row that fills the context goes on from the last half of it.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: must be at least 1")
    if on_text is not None and (len(prompts) != 1 or sampling.samples > 1):
        n_samples = f" with {sampling.samples} samples" * (sampling.samples > 1)
        raise ConfigError(f"text can be streamed for one prompt at a time, not for {len(prompts)}{n_samples}")
    rules = TokenRules(sampling, tokenizer, model)
    encoded = encode_prompts(tokenizer, prompts, model.config.max_seq_len, sampling)
    together = max(1, batch_size // max(sampling.beams, sampling.samples))
    timing = Timing()
    generations: list[Generation] = []
    with evaluating(model):
        for start in range(0, len(encoded), together):
            part = encoded[start : start + together]
            texts = _Beams(part, rules) if sampling.beams > 1 else _Samples(part, rules, on_text)
            _write(model, part, texts, timing)
            generations += texts.generations()
        if on_text is not None and sampling.beams > 1 and generations[0].text:
            on_text(generations[0].text)
    return generations, timing


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and each module back to what it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _write(model: GPT, prompts: list[Prompt], texts: "_Beams | _Samples", timing: Timing) -> None:
    """Go on from these prompts together until every text has ended; the time is added to `timing`."""
    start = time.perf_counter()
    batch = CachedBatch(model, [prompt.tokens for prompt in prompts], texts.rules.sampling.max_new_tokens)
    # Each prompt is read once; its samples go on from there.
    texts.extend(batch.prefill(copies=len(texts.going) // len(prompts)), batch)
    timing.prefill_tokens += sum(len(prompt.tokens) for prompt in prompts)
    timing.prefill_seconds += time.perf_counter() - start
    start = time.perf_counter()
    while going := texts.going:
        texts.extend(batch.step([text.row for text in going], [text.tokens[-1] for text in going]), batch)
        timing.decode_tokens += len(going)
    timing.decode_seconds += time.perf_counter() - start


class CachedBatch:
    """All tokens of each row, and the keys and values the model has computed for those its next one depends on.

    A row that fills the model's context goes on from its last `max_seq_len // 2` tokens: it slides. When that happens
    depends on the row's own length only. Rows stand at the right edge of the cache; its width is the longest row's.
    """

    def __init__(self, model: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self.model, self.context = model, model.config.max_seq_len
        self.lengths = list(map(len, prompts))  # of each row's tokens, how many the next one depends on
        self.slides = [0] * len(prompts)
        self.n_prompt = max(self.lengths)
        padded = [[-1] * (self.n_prompt - len(prompt)) + list(prompt) for prompt in prompts]
        self.tokens = torch.tensor(padded, device=model.unembedding.device)  # (B, S), -1 left of the shorter prompts
        max_len = min(self.context, self.n_prompt + max_new_tokens)
        self.cache = KVCache.for_model(model.transformer, len(prompts), max_len)

    @property
    def new(self) -> Tensor:
        """The tokens behind the prompts (B, T)."""
        return self.tokens[:, self.n_prompt :]

    @torch.inference_mode()
    def prefill(self, copies: int) -> Tensor:
        """Logits (B, V) of the token after each prompt, from now on as so many rows; the first call."""
        logits = self.model.next_logits(self.tokens.clamp(min=0), mask=self._mask(), cache=self.cache)
        if copies > 1:
            self._keep([row for row in range(len(self.lengths)) for _ in range(copies)])
        return logits.repeat_interleave(copies, dim=0)

    @torch.inference_mode()
    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Logits (B, V) of the token after each of these rows, once `tokens` (one a row) are added.

        The batch goes on with these rows only, in this order; a row may be named more than once.
        """
        if list(rows) != list(range(len(self.lengths))):
            self._keep(rows)
        if full := [row for row, length in enumerate(self.lengths) if length == self.context]:
            self._slide(full)
        column = torch.tensor(tokens, device=self.tokens.device)[:, None]
        self.tokens = torch.cat((self.tokens, column), dim=1)
        self.lengths = [length + 1 for length in self.lengths]
        return self.model.next_logits(column, cache=self.cache)

    def _slide(self, rows: list[int]) -> None:
        """Let these rows depend, with the token to come, on half a context, and compute what is left of it anew."""
        kept = max(1, self.context // 2) - 1
        for row in rows:
            self.lengths[row] = kept
            self.slides[row] += 1
        if kept:
            part = KVCache.for_model(self.model.transformer, len(rows), kept)
            self.model.transformer(self.tokens[rows, -kept:], cache=part)
            end = self.cache.length
            for old, new in zip(self.cache.keys + self.cache.values, part.keys + part.values, strict=True):
                old[rows, :, end - kept : end] = new
        self._keep(range(len(self.lengths)))

    def _keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, and no more columns of the cache than the longest of them has tokens."""
        self.lengths = [self.lengths[row] for row in rows]
        self.slides = [self.slides[row] for row in rows]
        index = torch.tensor(rows, device=self.tokens.device)
        self.tokens = self.tokens[index]
        cache, width = self.cache, max(self.lengths)
        for tensors in (cache.keys, cache.values):
            for layer, old in enumerate(tensors):
                new = old.new_empty(len(rows), *old.shape[1:])
                new[:, :, :width] = old[index, :, cache.length - width : cache.length]
                tensors[layer] = new
        cache.length, cache.mask = width, self._mask()

    def _mask(self) -> Tensor | None:
        """True (B, S) at the tokens of rows that stand at the right edge; None if all are of one length."""
        width = max(self.lengths)
        if min(self.lengths) == width:
            return None
        lengths = torch.tensor(self.lengths, device=self.tokens.device)
        return torch.arange(width, device=lengths.device) >= width - lengths[:, None]


class _Samples:
    def __init__(self, prompts: list[Prompt], rules: TokenRules, on_text: Callable[[str], None] | None) -> None:
        self.rules, self.on_text = rules, on_text
        self.texts = [Text(prompt, rules, n) for prompt in prompts for n in range(rules.sampling.samples)]
        self.going = self.texts

    def extend(self, logits: Tensor, batch: CachedBatch) -> None:
        """Add a token to each text that goes on, given its row of logits (B, V)."""
        for row, (text, token) in enumerate(zip(self.going, self._choose(logits, batch), strict=True)):
            text.row, text.slides = row, batch.slides[row]
            added = text.add(token)
            if added and self.on_text is not None:
                self.on_text(added)
        self.going = [text for text in self.going if text.stopped_by is None]

    @torch.inference_mode()
    def _choose(self, logits: Tensor, batch: CachedBatch) -> list[int]:
        sampling = self.rules.sampling
        allowed = self.rules.apply(logits, batch.tokens, batch.new)
        stuck = (allowed == -torch.inf).all(dim=-1).tolist() if sampling.no_repeat_ngram else []
        if any(stuck):
            text = self.going[stuck.index(True)]
            fault = f"after {len(text.tokens):,} new tokens of prompt {text.prompt.number} every token is ruled out"
            cure = "raise no_repeat_ngram, ban less, or write fewer tokens"
            raise ConfigError(f"no_repeat_ngram={sampling.no_repeat_ngram}: {fault}; {cure}")
        tokens = choose(allowed, sampling, [text.generator for text in self.going])
        if sampling.logprobs:
            own = logits.double().log_softmax(dim=-1)[range(len(tokens)), tokens]
            for text, logprob in zip(self.going, own.tolist(), strict=True):
                text.logprobs.append(logprob)
        return tokens

    def generations(self) -> list[Generation]:
        """Every text, each prompt's one after the other."""
        return [text.generation(n % self.rules.sampling.samples) for n, text in enumerate(self.texts)]


class _Beams:
    """Each prompt's beams: those that go on, best first, and the best that have ended.

    It follows transformers with early_stopping=False: of the 2 * beams best candidates a step, those that end are kept
    if they are among the first `beams`, the best of the others go on. A search is over when `beams` texts have ended
    and the best that goes on, scored as if it ended at its present length, is no better than the worst of them.
    """

    def __init__(self, prompts: list[Prompt], rules: TokenRules) -> None:
        self.rules = rules
        self.going = [Text(prompt, rules) for prompt in prompts]
        self.ended: dict[int, list[Text]] = {prompt.number: [] for prompt in prompts}

    @torch.inference_mode()
    def extend(self, logits: Tensor, batch: CachedBatch) -> None:
        """Take each search a step on, given the logits (B, V) of all beams."""
        likeliest(logits)  # or they are not finite
        own = logits.log_softmax(dim=-1)
        allowed = self.rules.apply(own, batch.tokens, batch.new)
        # All of a search's best candidates are among the best of their beams: no sum over the vocabulary is needed.
        best, ids = allowed.topk(min(2 * self.rules.sampling.beams, logits.shape[-1]), dim=-1)  # (B, 2 * beams)
        rows = list(zip(best.tolist(), ids.tolist(), own.gather(-1, ids).tolist(), strict=True))
        going: list[Text] = []
        for number, beams in groupby(enumerate(self.going), key=lambda beam: beam[1].prompt.number):
            candidates = [
                (beam.total + value, row, token, logprob)
                for row, beam in beams
                for value, token, logprob in zip(*rows[row], strict=True)
                if value > -torch.inf
            ]
            going += self._best(candidates, self.ended[number])
        self.going = going

    def _best(self, candidates: list[tuple[float, int, int, float]], ended: list[Text]) -> list[Text]:
        """The beams with which a search goes on; those that end here are added to `ended`."""
        # Of a candidate: summed log-probability after penalties, row of its beam, token, and the token's own.
        n_beams = self.rules.sampling.beams
        going: list[Text] = []
        best = sorted(candidates, key=itemgetter(0), reverse=True)[: 2 * n_beams]
        for rank, (total, row, token, logprob) in enumerate(best):
            if rank >= n_beams and len(going) == n_beams:
                break
            beam = self.going[row].copy()
            beam.total, beam.row = total, row
            beam.logprobs.append(logprob)
            beam.add(token)
            if beam.stopped_by is None and len(going) < n_beams:
                going.append(beam)
            elif beam.stopped_by is not None and rank < n_beams:
                ended.append(beam)
        ended.sort(key=lambda beam: beam.score, reverse=True)
        del ended[n_beams:]
        over = going and len(ended) == n_beams and going[0].score <= ended[-1].score
        return [] if over else going

    def generations(self) -> list[Generation]:
        """Each prompt's best texts, as many as there are samples; ConfigError if the options leave fewer."""
        wanted = self.rules.sampling.samples
        for number, ended in self.ended.items():
            if len(ended) < wanted:
                found = f"beam search found {len(ended)} texts after prompt {number}"
                why = "the bans, no_repeat_ngram and max_new_tokens leave no others"
                raise ConfigError(f"samples={wanted}: {found}; {why}")
        return [text.generation(k) for ended in self.ended.values() for k, text in enumerate(ended[:wanted])]
