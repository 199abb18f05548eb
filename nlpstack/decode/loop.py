"""Prompts in, text out: batches of rows decoded together, each as if it were alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from nlpstack.decode.cached_batch import CachedBatch
from nlpstack.decode.sampling import Sampling, choose, row_generator
from nlpstack.decode.text import TextStream
from nlpstack.errors import ConfigError, DataError
from nlpstack.model import GPT

if TYPE_CHECKING:
    from nlpstack.tokenizer.base import Tokenizer

StoppedBy = Literal["eos", "stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a model wrote after one prompt."""

    prompt: str
    text: str  # new text only, cut before the stop string
    tokens: list[int]  # every new token, the end-of-text token and those of the stop string among them
    n_prompt_tokens: int  # with the beginning-of-text token of an empty prompt
    stopped_by: StoppedBy  # "length": max_new_tokens
    slides: int  # how often the context was full, and half of it was dropped


@dataclass(kw_only=True)
class Timing:
    """Where the time went: prompts, to each one's first new token; then all further tokens."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Both parts together."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_tokens else 0.0

    @property
    def decode_rate(self) -> float:
        """New tokens per second over all rows, without each row's first."""
        return self.decode_tokens / self.decode_seconds if self.decode_tokens else 0.0


class _Row:
    """One prompt while it is continued."""

    def __init__(self, index: int, prompt: str, prompt_tokens: list[int], sampling: Sampling) -> None:
        self.prompt = prompt
        self.prompt_tokens = prompt_tokens
        self.generator = row_generator(sampling.seed, index)
        self.stream = TextStream(sampling.stop)
        self.tokens: list[int] = []
        self.stopped_by: StoppedBy | None = None
        self.slides = 0

    def generation(self) -> Generation:
        assert self.stopped_by is not None
        return Generation(
            prompt=self.prompt,
            text=self.stream.text,
            tokens=self.tokens,
            n_prompt_tokens=len(self.prompt_tokens),
            stopped_by=self.stopped_by,
            slides=self.slides,
        )


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

    A row depends on its prompt, its place in `prompts` and the sampling alone, not on the rows decoded beside it.
    `on_text` is given the text of a single prompt as it grows, in pieces that make up the text.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: must be at least 1")
    if on_text is not None and len(prompts) != 1:
        raise ConfigError(f"text can be streamed for one prompt at a time, not for {len(prompts)}")
    encoded = [_prompt_tokens(tokenizer, prompt, n, model.config.max_seq_len) for n, prompt in enumerate(prompts, 1)]
    rows = [
        _Row(index, prompt, tokens, sampling)
        for index, (prompt, tokens) in enumerate(zip(prompts, encoded, strict=True))
    ]
    decoder = _Decoder(model, tokenizer, sampling, on_text)
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            decoder.decode(rows[start : start + batch_size])
    return [row.generation() for row in rows], decoder.timing


def _prompt_tokens(tokenizer: "Tokenizer", prompt: str, number: int, context: int) -> list[int]:
    tokens = tokenizer.encode(prompt)
    if not tokens:
        if tokenizer.bos_id is None:
            raise DataError(
                f"prompt {number} is empty, and the model's tokenizer has no beginning-of-text token to start from; "
                "give a prompt"
            )
        return [tokenizer.bos_id]
    if len(tokens) > context:
        raise DataError(
            f"prompt {number} has {len(tokens):,} tokens, the model's context holds {context:,} (max_seq_len); "
            f"shorten it: {prompt[:40]!r}{'...' * (len(prompt) > 40)}"
        )
    return tokens


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


class _Decoder:
    """The decoding loop, and what it needs in every round."""

    def __init__(
        self, model: GPT, tokenizer: "Tokenizer", sampling: Sampling, on_text: Callable[[str], None] | None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.on_text = on_text
        self.timing = Timing()
        self.banned = _banned(tokenizer, model)

    def decode(self, rows: list[_Row]) -> None:
        """Continue these rows together until each has stopped."""
        timing, start = self.timing, time.perf_counter()
        with torch.inference_mode():
            batch = CachedBatch(self.model, [row.prompt_tokens for row in rows], self.sampling.max_new_tokens)
            tokens = self._choose(batch.prefill(), rows)
        timing.prefill_tokens += sum(len(row.prompt_tokens) for row in rows)
        timing.prefill_seconds += time.perf_counter() - start
        while True:
            start = time.perf_counter()
            for row, token, slides in zip(rows, tokens, batch.slides, strict=True):
                row.slides = slides
                self._add(row, token)
            going = [n for n, row in enumerate(rows) if row.stopped_by is None]
            if not going:
                timing.decode_seconds += time.perf_counter() - start
                return
            with torch.inference_mode():
                if len(going) < len(rows):
                    batch.keep(going)
                    rows, tokens = [rows[n] for n in going], [tokens[n] for n in going]
                tokens = self._choose(batch.step(tokens), rows)
            timing.decode_tokens += len(rows)
            timing.decode_seconds += time.perf_counter() - start

    def _choose(self, logits: Tensor, rows: list[_Row]) -> list[int]:
        if self.banned is not None:
            logits = logits.masked_fill(self.banned, -torch.inf)
        return choose(logits, self.sampling, [row.generator for row in rows])

    def _add(self, row: _Row, token: int) -> None:
        """Add a token to its row, pass new text on, and note if the row stops here."""
        row.tokens.append(token)
        last = len(row.tokens) == self.sampling.max_new_tokens
        ended = token == self.tokenizer.eos_id
        data = b"" if ended else self.tokenizer.token_bytes(token)
        text = row.stream.push(data, final=ended or last)
        if row.stream.stopped:
            row.stopped_by = "stop"
        elif ended:
            row.stopped_by = "eos"
        elif last:
            row.stopped_by = "length"
        if text and self.on_text is not None:
            self.on_text(text)


def _banned(tokenizer: "Tokenizer", model: GPT) -> Tensor | None:
    """True (V,) at ids that are never chosen: special ones but end of text, and ids the tokenizer does not have."""
    banned = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    banned[tokenizer.vocab_size :] = True
    banned[[token for token in tokenizer.special_ids if token != tokenizer.eos_id]] = True
    return banned.to(model.unembedding.device) if banned.any() else None
