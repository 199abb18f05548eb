"""Prompts, what is written after them, and how long that took."""

import codecs
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nlpstack.decode.next_token import TokenRules, piece, row_generator
from nlpstack.decode.sampling import Sampling
from nlpstack.errors import DataError
from nlpstack.tokenizer.base import Tokenizer

Given = str | tuple[str, list[int]]  # a prompt, its text alone or with its tokens
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


class Prompt(NamedTuple):
    """A text to go on from."""

    number: int  # from 1
    text: str
    tokens: list[int]


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[Given], context: int, sampling: Sampling) -> list[Prompt]:
    """The prompts as tokens; raises DataError for one that the model has no room for, or nothing to start from."""
    encoded = []
    for number, prompt in enumerate(prompts, 1):
        text, tokens = (prompt, tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt
        if not tokens:
            if tokenizer.bos_id is None:
                fault = "is empty, and the model's tokenizer has no beginning-of-text token to start from"
                raise DataError(f"prompt {number} {fault}; give a prompt")
            tokens = [tokenizer.bos_id]
        fault, cure = f"prompt {number} has {len(tokens):,} tokens", "; shorten it"
        needed = len(tokens) + sampling.max_new_tokens if sampling.beams > 1 else len(tokens)
        if len(tokens) <= context < needed:
            fault += f", with max_new_tokens={sampling.max_new_tokens} that is {needed:,}"
            cure = ", and beam search cannot go beyond it; lower max_new_tokens or shorten the prompt"
        if needed > context:
            shown = f"{text[:40]!r}{'...' * (len(text) > 40)}"
            raise DataError(f"{fault}, the model's context holds {context:,} (max_seq_len){cure}: {shown}")
        encoded.append(Prompt(number, text, tokens))
    return encoded


class TextStream:
    """Tokens' bytes into text that only ever grows: what is certain comes out, what may still change is held back.

    Held back are the bytes of an unfinished character and what could become a stop string. The first stop string is
    the one complete first, so how the text is cut into tokens does not matter; bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stop = stop
        self.stopped = False  # a stop string came; the text is complete
        self.text = ""  # all that came out
        self._held = ""
        self._bytes = b""  # of an unfinished character

    def push(self, data: bytes, *, final: bool = False) -> str:
        """What these further bytes add to the text; with `final`, nothing is held back any longer."""
        if self.stopped:
            return ""
        text, n_decoded = codecs.utf_8_decode(self._bytes + data, "replace", final)
        self._held, self._bytes = self._held + text, (self._bytes + data)[n_decoded:]
        found = [(start + len(stop), start) for stop in self.stop if (start := self._held.find(stop)) >= 0]
        self.stopped = bool(found)
        begun = (n for stop in self.stop for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        size = min(found)[1] if found else len(self._held) - (0 if final else max(begun, default=0))
        added, self._held = self._held[:size], self._held[size:]
        self.text += added
        return added


class Text:
    """One text while it is written: its new tokens, and whether it has ended."""

    def __init__(self, prompt: Prompt, rules: TokenRules, sample: int = 0) -> None:
        self.prompt = prompt
        self.sampling, self.tokenizer = rules.sampling, rules.tokenizer
        self.generator = row_generator(self.sampling.seed, prompt.number - 1, *[sample] * (sample > 0))
        self.row = 0  # of the batch whose logits its last token was chosen by
        self.slides = 0
        self.stream = TextStream(self.sampling.stop)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.total = 0.0  # of a beam: its summed log-probability, after penalties
        self.stopped_by: StoppedBy | None = None

    @property
    def score(self) -> float:
        """What a beam counts for among the texts of its prompt."""
        return self.total / float(len(self.tokens) ** self.sampling.length_penalty)

    def copy(self) -> "Text":
        """A text that goes on from here on its own."""
        other = copy(self)
        other.stream, other.tokens, other.logprobs = copy(self.stream), self.tokens.copy(), self.logprobs.copy()
        return other

    def add(self, token: int) -> str:
        """Add a token, note if the text ends here, and return what is certain of it and was not before."""
        self.tokens.append(token)
        last = len(self.tokens) == self.sampling.max_new_tokens
        ended = token == self.tokenizer.eos_id
        text = self.stream.push(b"" if ended else self.tokenizer.token_bytes(token), final=ended or last)
        self.stopped_by = "stop" if self.stream.stopped else "eos" if ended else "length" if last else None
        return text

    def generation(self, sample: int) -> Generation:
        """The text, which has ended, as one of those that were written after the prompt."""
        assert self.stopped_by is not None
        return Generation(
            prompt=self.prompt.text,
            sample=sample,
            text=self.stream.text,
            tokens=self.tokens,
            pieces=[piece(token, self.tokenizer) for token in self.tokens],
            logprobs=self.logprobs if self.sampling.logprobs else None,
            score=self.score if self.sampling.beams > 1 else None,
            n_prompt_tokens=len(self.prompt.tokens),
            stopped_by=self.stopped_by,
            slides=self.slides,
        )
