"""From the logits of a next token to the token: rules and penalties, filters, and a seeded draw of what is left."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from nlpstack.decode.sampling import Sampling
from nlpstack.errors import ConfigError, ModelError
from nlpstack.model import GPT
from nlpstack.tokenizer.base import Tokenizer

_HEAD = 1024  # tokens that usually hold all of top-p: finding them is ten times as fast as sorting a vocabulary


class TokenRules:
    """A Sampling's bias, penalties, bans and forced tokens for a model and its tokenizer.

    ConfigError for a token that is not there or never chosen, for rules that contradict, and if no token is left.
    """

    def __init__(self, sampling: Sampling, tokenizer: Tokenizer, model: GPT) -> None:
        self.sampling, self.tokenizer = sampling, tokenizer
        banned = [token_id(token, "banned", tokenizer) for token in sampling.banned]
        self.forced = [token_id(token, "forced", tokenizer) for token in sampling.forced]
        weight, eos_id = model.unembedding, tokenizer.eos_id
        self._bias = weight.new_zeros(len(weight), dtype=torch.promote_types(weight.dtype, torch.float32))
        biased = [token_id(token, "logit_bias", tokenizer) for token in sampling.logit_bias]
        for token, bias in zip(biased, sampling.logit_bias.values(), strict=True):
            if biased.count(token) > 1:
                raise ConfigError(f"logit_bias: token {_shown(token, tokenizer)} is given twice; leave out one")
            self._bias[token] = bias
        for name, ids in (("forced", self.forced), ("given a bias", biased)):
            if both := [token for token in ids if token in banned]:
                raise ConfigError(f"token {_shown(both[0], tokenizer)} is banned and {name}; leave out one of the two")
        if eos_id in self.forced:
            before, least = self.forced.index(eos_id), sampling.min_new_tokens
            if after := len(self.forced) - 1 - before:
                raise ConfigError(f"forced: token {eos_id} is the end of text, and {after} follow; put it last")
            if before < least:
                raise ConfigError(f"forced: token {eos_id}, the end of text, would come before min_new_tokens={least}")

        never = torch.arange(len(weight)) >= tokenizer.vocab_size
        never[[*banned, *(token for token in tokenizer.special_ids if token != eos_id)]] = True
        too_early = never.clone()
        too_early[[] if eos_id is None else [eos_id]] = True
        if never.all() or (too_early.all() and sampling.min_new_tokens > len(self.forced)):
            length = f", and min_new_tokens={sampling.min_new_tokens} rules out the end of text" * (not never.all())
            raise ConfigError(f"banned: no token is left to choose{length}; ban fewer")
        self._never, self._too_early = never.to(weight.device), too_early.to(weight.device)

    def apply(self, logits: Tensor, tokens: Tensor, new: Tensor) -> Tensor:
        """Logits (B, V) of the token behind tokens (B, S), the last of which are new (B, T); -inf rules one out.

        Tokens of -1 are none. A row may be left without any token by no_repeat_ngram.
        """
        if (n_new := new.shape[1]) < len(self.forced):
            only = torch.full_like(logits, -torch.inf)
            only[:, self.forced[n_new]] = logits[:, self.forced[n_new]]
            return only
        ruled_out = self._too_early if n_new < self.sampling.min_new_tokens else self._never
        return penalize(logits + self._bias, tokens, new, self.sampling).masked_fill(ruled_out, -torch.inf)


def penalize(logits: Tensor, tokens: Tensor, new: Tensor, sampling: Sampling) -> Tensor:
    """Logits (B, V) after all of a Sampling's penalties, -inf for what no_repeat_ngram rules out."""
    repeated = new if sampling.penalize_prompt is False else tokens
    counted = tokens if sampling.penalize_prompt else new
    if sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, repeated, sampling.repetition_penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        logits = penalize_frequency(logits, counted, sampling.frequency_penalty, sampling.presence_penalty)
    if sampling.no_repeat_ngram:
        logits = logits.masked_fill(repeated_ngrams(repeated, sampling.no_repeat_ngram, logits), -torch.inf)
    return logits


def counts(tokens: Tensor, like: Tensor) -> Tensor:
    """How often each row of tokens (B, S) holds each token, (B, V) in the shape and dtype of `like`; -1 is none."""
    return torch.zeros_like(like).scatter_add_(1, tokens.clamp(min=0), (tokens >= 0).to(like.dtype))


def penalize_repetition(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Logits (B, V), those of the tokens (B, S) divided by the penalty, or multiplied where negative.

    Keskar et al. 2019, CTRL, section 4.1, with the multiplication that transformers adds.
    """
    lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(counts(tokens, logits) > 0, lowered, logits)


def penalize_frequency(logits: Tensor, tokens: Tensor, frequency: float, presence: float) -> Tensor:
    """Logits (B, V) less `frequency` each time a token is in tokens (B, S), `presence` if it is; as in OpenAI's API."""
    n = counts(tokens, logits)
    return logits - frequency * n - presence * (n > 0)


def repeated_ngrams(tokens: Tensor, n: int, like: Tensor) -> Tensor:
    """True (B, V), the shape of `like`, at each token that would end n tokens in a row which tokens (B, S) hold."""
    if tokens.shape[1] < n:
        return torch.zeros_like(like, dtype=torch.bool)
    windows = tokens.unfold(1, n, 1)  # (B, S - n + 1, n)
    begun = (windows[..., :-1] == windows[:, -1:, 1:]).all(dim=-1)  # the last n - 1 tokens stand here too
    held = begun & (windows >= 0).all(dim=-1)  # (B, S - n + 1)
    return counts(torch.where(held, windows[..., -1], -1), like) > 0


def token_id(token: int | str, option: str, tokenizer: Tokenizer) -> int:
    """The id of a token given as id or text; ConfigError, which names the option, unless it can be chosen."""
    if isinstance(token, str):
        ids = tokenizer.encode(token)
        if len(ids) != 1:
            pieces = ", ".join(repr(piece(each, tokenizer)) for each in ids)
            cut = f"the tokenizer cuts it into {len(ids)}: {pieces}" if ids else "it is empty"
            raise ConfigError(f"{option}: unknown token {token!r}, {cut}; give a single token, or its id")
        (token,) = ids
    last = tokenizer.vocab_size - 1
    if not 0 <= token <= last:
        raise ConfigError(f"{option}: unknown token {token}, the tokenizer's ids run from 0 to {last:,}")
    if token in tokenizer.special_ids and token != tokenizer.eos_id:
        end = f", {tokenizer.eos_id}" if tokenizer.eos_id is not None else ""
        rule = f"of these only the end of text can be named{end}"
        raise ConfigError(f"{option}: token {token} is a special one, and never chosen; {rule}")
    return token


def piece(token: int, tokenizer: Tokenizer) -> str:
    """What a token adds to a text; bytes that are no UTF-8 on their own become U+FFFD."""
    return tokenizer.token_bytes(token).decode(errors="replace")


def _shown(token: int, tokenizer: Tokenizer) -> str:
    return f"{token} ({piece(token, tokenizer)!r})"


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (B, V), the largest of each row moved to 0, divided by a temperature above 0, however small."""
    shifted = logits - logits.amax(dim=-1, keepdim=True)  # so that nothing overflows
    return shifted / max(temperature, torch.finfo(logits.dtype).tiny)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) with -inf for every token less likely than the k-th likeliest; ties with that one stay."""
    if not 0 < k < logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k, dim=-1).values[..., -1:], -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with -inf outside the smallest set of likeliest tokens whose probability reaches p.

    Holtzman et al. 2020, section 3.1. The likeliest token always stays; of equally likely ones the lower id is first.
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
