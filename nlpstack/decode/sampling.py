"""Which token comes next: the options of decoding, filters on logits, seeded draws."""

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from nlpstack.errors import ConfigError, ModelError

Strings = Annotated[tuple[str, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]

_HEAD = 1024  # tokens that usually hold all of top-p: finding them is ten times as fast as sorting a vocabulary


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, allow_inf_nan=False, extra="forbid"))
class Sampling:
    """How a model's text is chosen, token by token."""

    max_new_tokens: int = 128  # the end-of-text token and those of a stop string count
    greedy: bool = False  # always the likeliest token
    temperature: float = 1.0  # divides the logits; 0 is greedy
    top_k: int = 0  # only the k likeliest tokens, and any as likely as the k-th; 0: off
    top_p: float = 1.0  # only the likeliest tokens that together reach this probability; 1: off
    stop: Strings = ()  # text ends before the first of these
    seed: int = 0

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
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"temperature={self.temperature}: must be at least 0; 0 always takes the likeliest token")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k}: must be at least 1, or 0 to keep every token")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}: must be above 0 and at most 1; 1 keeps every token")
        if "" in self.stop:
            raise ConfigError("stop='': an empty stop string would end every text before it begins; leave it out")
        if self.greedy:
            given = {"temperature": self.temperature not in (0, 1), "top_k": self.top_k > 0, "top_p": self.top_p < 1}
            if clashing := [f"{name}={getattr(self, name)}" for name, is_set in given.items() if is_set]:
                raise ConfigError(
                    f"greedy with {', '.join(clashing)}: greedy always takes the likeliest token; leave out one side"
                )

    @property
    def always_likeliest(self) -> bool:
        """Whether nothing is drawn: greedy, which temperature 0 is too."""
        return self.greedy or self.temperature == 0


def _in_words(fault: Any) -> str:
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] in ("unexpected_keyword_argument", "unexpected_property"):
        close = get_close_matches(name, Sampling.__dataclass_fields__, n=1)
        return f"unknown sampling option '{name}'" + (f"; did you mean '{close[0]}'?" if close else "")
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{name}={fault['input']!r}: {message}"


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (B, V), the largest of each row moved to 0, divided by a temperature above 0, however small."""
    shifted = logits - logits.amax(dim=-1, keepdim=True)  # so that nothing overflows
    return shifted / max(temperature, torch.finfo(logits.dtype).tiny)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) with -inf for every token less likely than the k-th likeliest; ties with that one stay."""
    if not 0 < k < logits.shape[-1]:
        return logits
    kth = logits.topk(k, dim=-1).values[..., -1:]  # (B, 1)
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with -inf outside the smallest set of likeliest tokens whose probability reaches p.

    Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, section 3.1. The likeliest token always stays;
    of equally likely ones the lower id comes first.
    """
    if p >= 1:
        return logits
    chances = logits.softmax(dim=-1)
    ordered = chances.topk(min(_HEAD, logits.shape[-1]), dim=-1).values
    if (ordered.sum(dim=-1) < p).any():
        ordered = chances.sort(dim=-1, descending=True).values
    n_kept = 1 + (ordered.cumsum(dim=-1)[..., :-1] < p).sum(dim=-1, keepdim=True)  # (B, 1)
    least = ordered.gather(-1, n_kept - 1)  # (B, 1)
    above, tied = chances > least, chances == least
    kept = above | (tied & (tied.cumsum(dim=-1) <= n_kept - above.sum(dim=-1, keepdim=True)))
    return logits.masked_fill(~kept, -torch.inf)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution (B, V) that is drawn from, in fp64 on the CPU: temperature, then top-k, then top-p."""
    logits = apply_temperature(logits, sampling.temperature)
    logits = keep_top_k(logits, sampling.top_k)
    logits = keep_top_p(logits, sampling.top_p)
    return logits.cpu().double().softmax(dim=-1)


def row_generator(seed: int, *row: int) -> torch.Generator:
    """The random stream of one row of text, the same in whatever batch and on whatever device it is decoded."""
    digest = hashlib.sha256(":".join(map(str, (seed, *row))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4]))  # the CPU's generator ignores all but 32 bits


def draw(chances: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """A token (B,) for each row of probabilities (B, V), with one number from each row's generator."""
    uniform = torch.stack([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    cumulative = chances.double().cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    tokens = torch.searchsorted(cumulative, uniform * total, right=True)  # (B, 1), the first one beyond
    last = torch.searchsorted(cumulative, total)  # the last token with a chance, should uniform * total round up
    return torch.minimum(tokens, last)[:, 0]


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """The next token of each row, given its logits (B, V) and its generator."""
    likeliest = logits.argmax(dim=-1, keepdim=True)  # (B, 1); of equally likely tokens the lowest id, on the CPU
    if not logits.gather(-1, likeliest).isfinite().all():
        raise ModelError("the model's logits are not finite; its weights are damaged, or too large for dtype fp16")
    if sampling.always_likeliest:
        return likeliest[:, 0].tolist()
    return draw(probabilities(logits, sampling), generators).tolist()
