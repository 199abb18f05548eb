"""The options of decoding: which token comes next, and when a text ends."""

import tomllib
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from nlpstack.errors import ConfigError, did_you_mean


def _id_or_text(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a token is its id, a whole number, or its text")
    return value


Token = Annotated[int | str, BeforeValidator(_id_or_text)]  # a text must be one token of the model's tokenizer
_FROM_LIST = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Tokens = Annotated[tuple[Token, ...], _FROM_LIST]

_OPTIONS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("sampling.toml").read_text("utf-8"))


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
    stop: Annotated[tuple[str, ...], _FROM_LIST] = ()  # text ends before the first of these
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
        sampling._check_values()
        return sampling

    def _check_values(self) -> None:
        """Refuse values out of their range, options that contradict each other, and those that would do nothing."""
        values = {name: getattr(self, name) for name in _OPTIONS}
        for name, said in _OPTIONS.items():
            if "rule" in said:
                _refuse(not said["least"] <= values[name] <= said["most"], f"{name}={values[name]}: {said['rule']}")
        _refuse("" in self.stop, "stop='': an empty stop string would end every text before it begins; leave it out")
        for token, bias in self.logit_bias.items():
            rule = "must be between -1,000 and 1,000; ban or force the token instead"
            _refuse(abs(bias) > 1000, f"logit_bias {token!r}={bias}: {rule}")
        drawing = [name for name, said in _OPTIONS.items() if "off" in said and values[name] not in said["off"]]
        drawn = ", ".join(f"{name}={values[name]}" for name in drawing)
        beams, samples = f"beams={self.beams}", f"samples={self.samples}"
        most, least = f"max_new_tokens={self.max_new_tokens}", f"min_new_tokens={self.min_new_tokens}"
        how = "greedy" if self.greedy else drawn
        _refuse(self.beams > 1 and how, f"{beams} with {how}: beam search draws nothing; leave out one side")
        _refuse(self.greedy and drawn, f"greedy with {drawn}: it always takes the likeliest token; leave out one side")
        how = "greedy" if self.greedy else f"temperature={self.temperature}"
        alike = self.samples > 1 and self.beams == 1 and self.always_likeliest
        _refuse(alike, f"{samples} with {how}: they would all be the same text; draw them, or give beams")
        _refuse(1 < self.beams < self.samples, f"{samples} with {beams}: there are no more texts than beams")
        unused = self.beams == 1 and self.length_penalty != 1
        _refuse(unused, f"length_penalty={self.length_penalty} without beams: only beam search has one; give beams")
        _refuse(self.min_new_tokens > self.max_new_tokens, f"{least} with {most}: raise the latter")
        n_forced = len(self.forced)
        _refuse(n_forced > self.max_new_tokens, f"forced: {n_forced} tokens do not fit into {most}; raise it")

    @property
    def always_likeliest(self) -> bool:
        """Whether nothing is drawn and nothing searched: greedy, which temperature 0 is too."""
        return self.greedy or self.temperature == 0


def _refuse(fault: object, message: str) -> None:
    if fault:
        raise ConfigError(message)


def _in_words(fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    if fault["type"] in ("unexpected_keyword_argument", "unexpected_property"):
        return f"unknown sampling option '{name}'{did_you_mean(name, Sampling.__dataclass_fields__)}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{name}={fault['input']!r}: {message[:1].lower()}{message[1:]}"
