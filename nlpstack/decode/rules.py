"""Which tokens may come next: the options that name tokens, resolved for one model."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlpstack.decode.penalties import History, penalize
from nlpstack.decode.sampling import Sampling
from nlpstack.errors import ConfigError
from nlpstack.model import GPT

if TYPE_CHECKING:
    from nlpstack.tokenizer.base import Tokenizer


class TokenRules:
    """A Sampling's bias, penalties, bans and forced tokens for a model and its tokenizer.

    Raises ConfigError for a token that the tokenizer does not have or the model never chooses, for tokens with two
    rules that contradict each other, and if no token is left.
    """

    def __init__(self, sampling: Sampling, tokenizer: "Tokenizer", model: GPT) -> None:
        self.sampling = sampling
        banned = {token_id(token, "banned", tokenizer) for token in sampling.banned}
        self.forced = [token_id(token, "forced", tokenizer) for token in sampling.forced]
        biases = _biases(sampling, tokenizer)
        for name, ids in (("forced", self.forced), ("given a bias", biases)):
            if both := [token for token in ids if token in banned]:
                raise ConfigError(f"token {_shown(both[0], tokenizer)} is banned and {name}; leave out one of the two")
        _check_end(self.forced, sampling, tokenizer.eos_id)

        never = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        never[tokenizer.vocab_size :] = True
        never[[token for token in tokenizer.special_ids if token != tokenizer.eos_id]] = True
        never[list(banned)] = True
        too_early = never.clone()
        if sampling.min_new_tokens and tokenizer.eos_id is not None:
            too_early[tokenizer.eos_id] = True
        if never.all() or (too_early.all() and sampling.min_new_tokens > len(self.forced)):
            length = f", and min_new_tokens={sampling.min_new_tokens} rules out the end of text" * (not never.all())
            raise ConfigError(f"banned: no token is left to choose{length}; ban fewer")
        device, dtype = model.unembedding.device, torch.promote_types(model.unembedding.dtype, torch.float32)
        self._never, self._too_early = (mask.to(device) if mask.any() else None for mask in (never, too_early))
        self._bias = None
        if biases:
            self._bias = torch.zeros(model.config.vocab_size, dtype=dtype)
            self._bias[list(biases)] = torch.tensor(list(biases.values()), dtype=dtype)
            self._bias = self._bias.to(device)

    def apply(self, logits: Tensor, history: History | None, n_new: int) -> Tensor:
        """Logits (B, V) of the token behind `n_new` new ones, -inf where it may not be chosen.

        `history` is needed where there are penalties. A row may be left without any token by no_repeat_ngram.
        """
        if n_new < len(self.forced):
            forced = self.forced[n_new]
            only = torch.full_like(logits, -torch.inf)
            only[:, forced] = logits[:, forced]
            return only
        if self._bias is not None:
            logits = logits + self._bias
        if history is not None:
            logits = penalize(logits, history, self.sampling)
        ruled_out = self._too_early if n_new < self.sampling.min_new_tokens else self._never
        return logits if ruled_out is None else logits.masked_fill(ruled_out, -torch.inf)

    def nothing_left(self, number: int, n_new: int) -> ConfigError:
        """The error for a prompt whose text no token may go on."""
        return ConfigError(
            f"no_repeat_ngram={self.sampling.no_repeat_ngram}: after {n_new:,} new tokens of prompt {number} every "
            "token is ruled out; raise no_repeat_ngram, ban less, or write fewer tokens"
        )


def token_id(token: int | str, option: str, tokenizer: "Tokenizer") -> int:
    """The id of a token given as id or text; ConfigError, which names the option, unless it can be chosen."""
    if isinstance(token, str):
        ids = tokenizer.encode(token)
        if len(ids) != 1:
            pieces = ", ".join(repr(piece(each, tokenizer)) for each in ids)
            cut = f"the tokenizer cuts it into {len(ids)}: {pieces}" if ids else "it is empty"
            raise ConfigError(f"{option}: unknown token {token!r}, {cut}; give a single token, or its id")
        (token,) = ids
    if not 0 <= token < tokenizer.vocab_size:
        raise ConfigError(
            f"{option}: unknown token {token}, the tokenizer's ids run from 0 to {tokenizer.vocab_size - 1:,}"
        )
    if token in tokenizer.special_ids and token != tokenizer.eos_id:
        raise ConfigError(
            f"{option}: token {token} is a special one, and never chosen; of these only the end of text can be named"
            + (f", {tokenizer.eos_id}" if tokenizer.eos_id is not None else "")
        )
    return token


def piece(token: int, tokenizer: "Tokenizer") -> str:
    """What a token adds to a text; bytes that are no UTF-8 on their own become U+FFFD."""
    return tokenizer.token_bytes(token).decode(errors="replace")


def _shown(token: int, tokenizer: "Tokenizer") -> str:
    return f"{token} ({piece(token, tokenizer)!r})"


def _biases(sampling: Sampling, tokenizer: "Tokenizer") -> dict[int, float]:
    biases: dict[int, float] = {}
    for token, bias in sampling.logit_bias.items():
        named = token_id(token, "logit_bias", tokenizer)
        if named in biases:
            raise ConfigError(f"logit_bias: token {_shown(named, tokenizer)} is given twice; leave out one")
        biases[named] = bias
    return biases


def _check_end(forced: list[int], sampling: Sampling, eos_id: int | None) -> None:
    """Refuse a forced end of text that more tokens would have to follow."""
    if eos_id not in forced:
        return
    at = forced.index(eos_id)
    if at < len(forced) - 1:
        raise ConfigError(f"forced: token {eos_id} is the end of text, and {len(forced) - 1 - at} follow; put it last")
    if at < sampling.min_new_tokens:
        raise ConfigError(
            f"forced: token {eos_id}, the end of text, would come before min_new_tokens={sampling.min_new_tokens}"
        )
