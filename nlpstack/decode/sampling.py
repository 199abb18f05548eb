"""The options of decoding: which token comes next, and when a text ends."""

from collections.abc import Iterator
from dataclasses import field
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from nlpstack.errors import ConfigError


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _id_or_text(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a token is its id, a whole number, or its text")
    return value


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Token = Annotated[int | str, BeforeValidator(_id_or_text)]  # a text must be one token of the model's tokenizer
Tokens = Annotated[tuple[Token, ...], BeforeValidator(_as_tuple)]

# What draws, and the values under which each does nothing.
_DRAWING: dict[str, tuple[float, ...]] = {"temperature": (0, 1), "top_k": (0,), "top_p": (1,), "min_p": (0,)}

# Beyond these, sums of logits and penalties would leave the finite numbers.
MOST_BIAS = 1000
MOST_PENALTY = 100
MOST_LENGTH_PENALTY = 10


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, allow_inf_nan=False, extra="forbid"))
class Sampling:
    """How a model's text is chosen, token by token.

    Bias, penalties and bans act on the logits, in this order; then come temperature, top_k, top_p and min_p. In beam
    search they act on the log-probabilities, as in transformers, and what is left is not made to sum to 1 again.
    """

    max_new_tokens: int = 128  # the end-of-text token and those of a stop string count
    min_new_tokens: int = 0  # the end-of-text token is not chosen before so many others
    greedy: bool = False  # always the likeliest token
    temperature: float = 1.0  # divides the logits; 0 is greedy
    top_k: int = 0  # only the k likeliest tokens, and any as likely as the k-th; 0: off
    top_p: float = 1.0  # only the likeliest tokens that together reach this probability; 1: off
    min_p: float = 0.0  # only tokens at least this many times as likely as the likeliest; 0: off
    beams: int = 1  # texts that beam search goes on with at a time; 1: no beam search
    length_penalty: float = 1.0  # a beam's score: its summed log-probability / (its new tokens ** length_penalty)
    repetition_penalty: float = 1.0  # a token that occurred: its logit divided by this, multiplied if negative; 1: off
    frequency_penalty: float = 0.0  # is subtracted from a token's logit as often as it occurred
    presence_penalty: float = 0.0  # is subtracted from the logit of every token that occurred
    # Whether the prompt's tokens occurred too. None: for repetition_penalty and no_repeat_ngram they did, for
    # frequency_penalty and presence_penalty only new text counts, as the makers of each define it.
    penalize_prompt: bool | None = None
    no_repeat_ngram: int = 0  # no n tokens in a row occur twice; 0: off
    logit_bias: dict[Token, float] = field(default_factory=dict, hash=False)  # is added to the token's logit
    banned: Tokens = ()  # never chosen
    forced: Tokens = ()  # the new text begins with these, whatever else rules them out
    stop: Strings = ()  # text ends before the first of these
    samples: int = 1  # texts a prompt; of beam search, the best ones
    logprobs: bool = False  # keep each new token's log-probability under the model's own distribution
    seed: int = 0  # another one draws other text

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, value: Any, handler: ModelWrapValidatorHandler["Sampling"]) -> "Sampling":
        try:
            sampling = handler(value)
        except ValidationError as error:
            raise ConfigError("; ".join(_in_words(fault) for fault in error.errors())) from None
        for name, fine, rule in sampling._ranges():
            if not fine:
                raise ConfigError(f"{name}={getattr(sampling, name)}: {rule}")
        sampling._check_texts()
        sampling._check_pairs()
        return sampling

    def _ranges(self) -> Iterator[tuple[str, bool, str]]:
        """Name of a number, whether it is one that can be meant, and which ones can."""
        yield "max_new_tokens", self.max_new_tokens >= 1, "must be at least 1"
        yield "min_new_tokens", self.min_new_tokens >= 0, "must be at least 0"
        yield "temperature", self.temperature >= 0, "must be at least 0; 0 always takes the likeliest token"
        yield "top_k", self.top_k >= 0, "must be at least 1, or 0 to keep every token"
        yield "top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1; 1 keeps every token"
        yield "min_p", 0 <= self.min_p <= 1, "must be at least 0 and at most 1; 0 keeps every token"
        yield "beams", self.beams >= 1, "must be at least 2 for beam search, or 1 for none"
        yield "length_penalty", *_within(self.length_penalty, MOST_LENGTH_PENALTY)
        fine = 1 / MOST_PENALTY <= self.repetition_penalty <= MOST_PENALTY
        yield "repetition_penalty", fine, f"must be between {1 / MOST_PENALTY} and {MOST_PENALTY}; 1 is none"
        yield "frequency_penalty", *_within(self.frequency_penalty, MOST_PENALTY)
        yield "presence_penalty", *_within(self.presence_penalty, MOST_PENALTY)
        yield "no_repeat_ngram", self.no_repeat_ngram >= 0, "must be at least 1, or 0 to let everything repeat"
        yield "samples", self.samples >= 1, "must be at least 1"

    def _check_texts(self) -> None:
        if "" in self.stop:
            raise ConfigError("stop='': an empty stop string would end every text before it begins; leave it out")
        for token, bias in self.logit_bias.items():
            if abs(bias) > MOST_BIAS:
                raise ConfigError(
                    f"logit_bias {token!r}={bias}: must be between {-MOST_BIAS:,} and {MOST_BIAS:,}; "
                    "ban or force the token instead"
                )

    def _check_pairs(self) -> None:
        """Refuse options that contradict each other, and those that would do nothing."""
        drawing = {
            name: getattr(self, name) for name, neutral in _DRAWING.items() if getattr(self, name) not in neutral
        }
        drawn = ", ".join(f"{name}={value}" for name, value in drawing.items())
        if self.beams > 1 and (self.greedy or drawing):
            with_what = "greedy" if self.greedy else drawn
            raise ConfigError(f"beams={self.beams} with {with_what}: beam search draws nothing; leave out one side")
        if self.greedy and drawing:
            raise ConfigError(f"greedy with {drawn}: greedy always takes the likeliest token; leave out one side")
        if self.samples > 1 and self.beams == 1 and self.always_likeliest:
            how = "greedy" if self.greedy else f"temperature={self.temperature}"
            raise ConfigError(
                f"samples={self.samples} with {how}: they would all be the same text; draw them, or give beams"
            )
        if 1 < self.beams < self.samples:
            raise ConfigError(f"samples={self.samples} with beams={self.beams}: there are no more texts than beams")
        if self.beams == 1 and self.length_penalty != 1:
            raise ConfigError(
                f"length_penalty={self.length_penalty} without beams: only beam search has one; give beams"
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens={self.min_new_tokens} with max_new_tokens={self.max_new_tokens}: raise the latter"
            )
        if len(self.forced) > self.max_new_tokens:
            raise ConfigError(
                f"forced: {len(self.forced)} tokens do not fit into max_new_tokens={self.max_new_tokens}; raise it"
            )

    @property
    def always_likeliest(self) -> bool:
        """Whether nothing is drawn and nothing searched: greedy, which temperature 0 is too."""
        return self.greedy or self.temperature == 0


def _within(value: float, most: int) -> tuple[bool, str]:
    return abs(value) <= most, f"must be between {-most} and {most}"


def _in_words(fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    if fault["type"] in ("unexpected_keyword_argument", "unexpected_property"):
        close = get_close_matches(name, Sampling.__dataclass_fields__, n=1)
        return f"unknown sampling option '{name}'" + (f"; did you mean '{close[0]}'?" if close else "")
    message = fault["msg"].removeprefix("Value error, ")
    return f"{name}={fault['input']!r}: {message[:1].lower()}{message[1:]}"
