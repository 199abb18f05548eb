"""Prompts in, text out: batches of rows decoded together, each as if it were alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nlpstack.decode.beam import search
from nlpstack.decode.cached_batch import CachedBatch
from nlpstack.decode.filters import choose, row_generator
from nlpstack.decode.generation import Continuation, Generation, Prompt, Timing, encode_prompts
from nlpstack.decode.penalties import History, uses_history
from nlpstack.decode.rules import TokenRules
from nlpstack.decode.sampling import Sampling
from nlpstack.errors import ConfigError
from nlpstack.model import GPT

if TYPE_CHECKING:
    from nlpstack.tokenizer.base import Tokenizer


class _Row:
    """One text of a prompt while it is written."""

    def __init__(self, prompt: Prompt, sample: int, tokenizer: "Tokenizer", sampling: Sampling) -> None:
        self.prompt = prompt
        self.sample = sample
        place = (prompt.number - 1, sample) if sample else (prompt.number - 1,)
        self.generator = row_generator(sampling.seed, *place)
        self.continuation = Continuation(tokenizer, sampling)
        self.slides = 0

    def generation(self) -> Generation:
        return self.continuation.generation(self.prompt, sample=self.sample, slides=self.slides)


def decode(
    model: GPT,
    tokenizer: "Tokenizer",
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    on_text: Callable[[str], None] | None = None,
) -> tuple[list[Generation], Timing]:
    """What the model writes after each prompt, in their order, and how long it took.

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
    timing = Timing()
    together = max(1, batch_size // max(sampling.beams, sampling.samples))
    generations: list[Generation] = []
    with evaluating(model):
        for start in range(0, len(encoded), together):
            part = encoded[start : start + together]
            if sampling.beams > 1:
                generations += search(model, tokenizer, part, rules, timing)
                if on_text is not None and generations[0].text:
                    on_text(generations[0].text)
            else:
                rows = [_Row(prompt, k, tokenizer, sampling) for prompt in part for k in range(sampling.samples)]
                _decode(model, part, rows, rules, timing, on_text)
                generations += [row.generation() for row in rows]
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


def _decode(
    model: GPT,
    prompts: list[Prompt],
    rows: list[_Row],
    rules: TokenRules,
    timing: Timing,
    on_text: Callable[[str], None] | None,
) -> None:
    """Continue these rows, the same number for each prompt, together until each has stopped."""
    sampling, start = rules.sampling, time.perf_counter()
    history = None
    with torch.inference_mode():
        batch = CachedBatch(model, [prompt.tokens for prompt in prompts], sampling.max_new_tokens)
        logits = batch.prefill()
        if sampling.samples > 1:  # each prompt was read once; its samples go on from there
            copies = [n for n in range(len(prompts)) for _ in range(sampling.samples)]
            batch.keep(copies)
            logits = logits[copies]
        if uses_history(sampling):
            history = History([row.prompt.tokens for row in rows], logits.device)
        tokens = _choose(logits, rows, rules, history)
    timing.prefill_tokens += sum(len(prompt.tokens) for prompt in prompts)
    timing.prefill_seconds += time.perf_counter() - start
    while True:
        start = time.perf_counter()
        for row, token, slides in zip(rows, tokens, batch.slides, strict=True):
            row.slides = slides
            text = row.continuation.add(token)
            if text and on_text is not None:
                on_text(text)
        going = [n for n, row in enumerate(rows) if row.continuation.stopped_by is None]
        if not going:
            timing.decode_seconds += time.perf_counter() - start
            return
        with torch.inference_mode():
            if len(going) < len(rows):
                batch.keep(going)
                rows, tokens = [rows[n] for n in going], [tokens[n] for n in going]
                if history is not None:
                    history.keep(going)
            if history is not None:
                history.add(tokens)
            tokens = _choose(batch.step(tokens), rows, rules, history)
        timing.decode_tokens += len(rows)
        timing.decode_seconds += time.perf_counter() - start


def _choose(logits: Tensor, rows: list[_Row], rules: TokenRules, history: History | None) -> list[int]:
    """The next token of each row, given its logits (B, V)."""
    sampling, n_new = rules.sampling, len(rows[0].continuation.tokens)
    allowed = rules.apply(logits, history, n_new)
    if sampling.no_repeat_ngram:
        stuck = (allowed == -torch.inf).all(dim=-1).tolist()
        if any(stuck):
            raise rules.nothing_left(rows[stuck.index(True)].prompt.number, n_new)
    tokens = choose(allowed, sampling, [row.generator for row in rows])
    if sampling.logprobs:
        own = logits.double().log_softmax(dim=-1)[range(len(rows)), tokens]
        for row, logprob in zip(rows, own.tolist(), strict=True):
            row.continuation.logprobs.append(logprob)
    return tokens
