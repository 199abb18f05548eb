"""BERT: the core with attention to both sides, and heads that guess hidden tokens and the next sentence."""

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlpstack.model.heads import HEADS, Head, MaskedLMHead, Pooler
from nlpstack.model.meta import on_meta
from nlpstack.model.neighbours import see_neighbours
from nlpstack.model.transformer import Transformer, TransformerConfig, init_weights


class BERT(nn.Module):
    """A bidirectional encoder with some of its heads. `tokenizer`, where set, is the one its vocabulary stands for."""

    def __init__(self, config: TransformerConfig, tokenizer: Any = None, *, heads: Collection[Head] = HEADS) -> None:
        super().__init__()
        assert not config.causal, "a BERT sees both sides"
        assert "nsp" not in heads or "pooler" in heads, "the next sentence is told from the pooled vector"
        self.config = config
        self.tokenizer = tokenizer
        self.heads: tuple[Head, ...] = tuple(head for head in HEADS if head in heads)
        self.transformer = Transformer(config)
        self.mlm_head = MaskedLMHead(config) if "mlm" in heads else None
        self.pooler = Pooler(config) if "pooler" in heads else None
        self.nsp_head = nn.Linear(config.dim, 2, bias=config.bias) if "nsp" in heads else None

    @classmethod
    def create(
        cls, config: TransformerConfig, *, seed: int, tokenizer: Any = None, heads: Collection[Head] = HEADS
    ) -> "BERT":
        """A model with fresh fp32 weights on the CPU, a pure function of config, heads and seed."""
        with on_meta():
            model = cls(config, tokenizer, heads=heads)
        model.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        init_weights(model, n_layers=config.n_layers, generator=generator)
        if config.positions == "learned" and config.dim >= 8:
            see_neighbours(model.transformer, generator)
        return model

    @property
    def unembedding(self) -> Tensor:
        """The matrix (V, D) that turns the masked-token head's states into logits."""
        assert self.mlm_head is not None
        return self.transformer.tokens.weight if self.mlm_head.decoder is None else self.mlm_head.decoder.weight

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) of tokens (B, T); mask (B, T) is True at real tokens, segments (B, T) are 0 or 1."""
        hidden: Tensor = self.transformer(tokens, mask=mask, segments=segments)
        return hidden

    def mlm_logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of the token that stands at each of the hidden states (..., D)."""
        assert self.mlm_head is not None
        return F.linear(self.mlm_head(hidden), self.unembedding, self.mlm_head.bias)

    def nsp_logits(self, hidden: Tensor) -> Tensor:
        """Logits (B, 2) of hidden states (B, T, D): 0, the second text follows the first; 1, it is from elsewhere."""
        assert self.pooler is not None
        assert self.nsp_head is not None
        logits: Tensor = self.nsp_head(self.pooler(hidden))
        return logits
