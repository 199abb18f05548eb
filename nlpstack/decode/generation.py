"""Prompts, what is written after them, and how long that took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nlpstack.decode.rules import piece
from nlpstack.decode.sampling import Sampling
from nlpstack.decode.text import TextStream
from nlpstack.errors import DataError

if TYPE_CHECKING:
    from nlpstack.tokenizer.base import Tokenizer

StoppedBy = Literal["eos", "stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a model wrote after one prompt."""

    prompt: str
    sample: int  # which of the prompt's texts it is, from 0; of beam search, the best is 0
    text: str  # new text only, cut before the stop string
    tokens: list[int]  # every new token, the end-of-text token and those of the stop string among them
    pieces: list[str]  # what each token adds to the text; bytes that are no UTF-8 on their own are U+FFFD
    logprobs: list[float] | None  # of each token, if asked for: nats, of the model's distribution before any option
    score: float | None  # of a beam: its summed log-probability / (number of tokens ** length_penalty)
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
        """New tokens per second over all rows, without each row's first; every beam is a row."""
        return self.decode_tokens / self.decode_seconds if self.decode_tokens else 0.0


@dataclass(frozen=True)
class Prompt:
    """A text to go on from."""

    number: int  # from 1
    text: str
    tokens: list[int]


def encode_prompts(tokenizer: "Tokenizer", prompts: Sequence[str], context: int, sampling: Sampling) -> list[Prompt]:
    """The prompts as tokens; raises DataError for one that the model has no room for, or nothing to start from."""
    encoded = []
    for number, text in enumerate(prompts, 1):
        tokens = tokenizer.encode(text)
        if not tokens:
            if tokenizer.bos_id is None:
                raise DataError(
                    f"prompt {number} is empty, and the model's tokenizer has no beginning-of-text token to start "
                    "from; give a prompt"
                )
            tokens = [tokenizer.bos_id]
        shown = f"{text[:40]!r}{'...' * (len(text) > 40)}"
        if len(tokens) > context:
            raise DataError(
                f"prompt {number} has {len(tokens):,} tokens, the model's context holds {context:,} (max_seq_len); "
                f"shorten it: {shown}"
            )
        if sampling.beams > 1 and len(tokens) + sampling.max_new_tokens > context:
            raise DataError(
                f"prompt {number} has {len(tokens):,} tokens, with max_new_tokens={sampling.max_new_tokens} that is "
                f"{len(tokens) + sampling.max_new_tokens:,}, the model's context holds {context:,} (max_seq_len), and "
                f"beam search cannot go beyond it; lower max_new_tokens or shorten the prompt: {shown}"
            )
        encoded.append(Prompt(number, text, tokens))
    return encoded


class Continuation:
    """One text while it is written: its new tokens, and whether it has ended."""

    def __init__(self, tokenizer: "Tokenizer", sampling: Sampling) -> None:
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.stream = TextStream(sampling.stop)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.stopped_by: StoppedBy | None = None

    def copy(self) -> "Continuation":
        """A text that goes on from here on its own."""
        other = Continuation(self.tokenizer, self.sampling)
        other.stream = self.stream.copy()
        other.tokens, other.logprobs = self.tokens.copy(), self.logprobs.copy()
        return other

    def add(self, token: int) -> str:
        """Add a token, note if the text ends here, and return what is certain of it and was not before."""
        self.tokens.append(token)
        last = len(self.tokens) == self.sampling.max_new_tokens
        ended = token == self.tokenizer.eos_id
        data = b"" if ended else self.tokenizer.token_bytes(token)
        text = self.stream.push(data, final=ended or last)
        if self.stream.stopped:
            self.stopped_by = "stop"
        elif ended:
            self.stopped_by = "eos"
        elif last:
            self.stopped_by = "length"
        return text

    def generation(self, prompt: Prompt, *, sample: int, slides: int = 0, score: float | None = None) -> Generation:
        """The text, which has ended, as what was written after the prompt."""
        assert self.stopped_by is not None
        return Generation(
            prompt=prompt.text,
            sample=sample,
            text=self.stream.text,
            tokens=self.tokens,
            pieces=[piece(token, self.tokenizer) for token in self.tokens],
            logprobs=self.logprobs if self.sampling.logprobs else None,
            score=score,
            n_prompt_tokens=len(prompt.tokens),
            stopped_by=self.stopped_by,
            slides=slides,
        )
