"""Prompts in, text out: batches of rows decoded together, each as if it were alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nlpstack.decode.beam import Beams
from nlpstack.decode.cached_batch import CachedBatch
from nlpstack.decode.next_token import TokenRules, choose
from nlpstack.decode.sampling import Sampling
from nlpstack.decode.text import Generation, Given, Prompt, Text, Timing, encode_prompts
from nlpstack.errors import ConfigError
from nlpstack.model import GPT
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
            texts = Beams(part, rules) if sampling.beams > 1 else _Samples(part, rules, on_text)
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


def _write(model: GPT, prompts: list[Prompt], texts: "Beams | _Samples", timing: Timing) -> None:
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
