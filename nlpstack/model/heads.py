"""What stands on a BERT's hidden states: the guess of hidden tokens, one vector of the whole input, and labels."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlpstack.model.transformer import TransformerConfig, activate, make_norm

Head = Literal["mlm", "pooler", "nsp", "sequence", "tokens"]
HEADS: tuple[Head, ...] = ("mlm", "pooler", "nsp")  # of pretraining (Devlin et al. 2019, section 3.1)
ALL_HEADS: tuple[Head, ...] = (*HEADS, "sequence", "tokens")  # the last two classify the pooled vector, or each token


class Labels(NamedTuple):
    """What a classifier tells: the names of its outputs, in order, and how they are meant."""

    names: tuple[str, ...]  # of regression: one, of the number itself
    problem: Literal["single", "multi", "regression"] = "single"  # one label, any number of them, or a number


class MaskedLMHead(nn.Module):
    """Hidden states to what the unembedding is multiplied with; the logits are that product plus `bias`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = "gelu" if config.activation == "swiglu" else config.activation  # nothing is gated here
        self.dense = nn.Linear(config.dim, config.dim, bias=config.bias)
        self.norm = make_norm(config)
        self.decoder = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        transformed: Tensor = self.norm(activate(self.dense(hidden), self.activation))
        return transformed


class Pooler(nn.Module):
    """The hidden state of [CLS], through a layer of its own: one vector of the whole input."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim, bias=config.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        return F.tanh(self.dense(hidden[:, 0]))


def mean_pooled(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The mean (B, D) of the states (B, T, D) of real tokens, those where `mask` (B, T) is True; None: all are real."""
    if mask is None:
        return hidden.mean(dim=1)
    return hidden.masked_fill(~mask[..., None], 0).sum(dim=1) / mask.sum(dim=1, keepdim=True)
