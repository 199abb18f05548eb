"""From the logits of a next token to the token: filters, the distribution that is left, seeded draws."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from nlpstack.decode.sampling import Sampling
from nlpstack.errors import ModelError

_HEAD = 1024  # tokens that usually hold all of top-p: finding them is ten times as fast as sorting a vocabulary


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


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V), -inf for tokens less than p times as likely as the likeliest (Nguyen et al. 2024, section 3)."""
    if p <= 0:
        return logits
    chances = logits.softmax(dim=-1)
    return logits.masked_fill(chances < p * chances.amax(dim=-1, keepdim=True), -torch.inf)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution (B, V) that is drawn from, in fp64 on the CPU: temperature, then top-k, top-p and min-p."""
    logits = keep_top_k(apply_temperature(logits, sampling.temperature), sampling.top_k)
    logits = keep_min_p(keep_top_p(logits, sampling.top_p), sampling.min_p)
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


def likeliest(logits: Tensor) -> Tensor:
    """The likeliest token (B,) of logits (B, V); raises ModelError where they are not finite."""
    tokens = logits.argmax(dim=-1, keepdim=True)  # (B, 1); of equally likely tokens the lowest id, on the CPU
    if not logits.gather(-1, tokens).isfinite().all():
        raise ModelError("the model's logits are not finite; its weights are damaged, or too large for dtype fp16")
    return tokens[:, 0]


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """The next token of each row, given its logits (B, V) and its generator."""
    best = likeliest(logits)  # or they are not finite
    return (best if sampling.always_likeliest else draw(probabilities(logits, sampling), generators)).tolist()
