"""BERT: the core with attention to both sides, and heads that guess hidden tokens and the next sentence."""

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlpstack.model.bert_start import see_neighbours, see_shared_tokens
from nlpstack.model.heads import ALL_HEADS, HEADS, Head, Labels, MaskedLMHead, Pooler
from nlpstack.model.kernels import drop
from nlpstack.model.transformer import Transformer, TransformerConfig, init_weights, on_meta


class BERT(nn.Module):
    """A bidirectional encoder with some of its heads. `tokenizer`, where set, is the one its vocabulary stands for.

    `labels` are those of the head "sequence", which reads the pooled vector, or "tokens", which reads every token.
    """

    def __init__(
        self,
        config: TransformerConfig,
        tokenizer: Any = None,
        *,
        heads: Collection[Head] = HEADS,
        labels: Labels | None = None,
    ) -> None:
        super().__init__()
        assert not config.causal, "a BERT sees both sides"
        assert not {"nsp", "sequence"} & set(heads) or "pooler" in heads, "both are told from the pooled vector"
        assert (labels is not None) == any(head in heads for head in ("sequence", "tokens"))
        self.config, self.tokenizer = config, tokenizer
        self.base: tuple[str, str] | None = None  # of a model with adapters: where its base stands, and its hash
        self.heads: tuple[Head, ...] = tuple(head for head in ALL_HEADS if head in heads)
        self.transformer = Transformer(config)
        self.mlm_head = MaskedLMHead(config) if "mlm" in heads else None
        self.pooler = Pooler(config) if "pooler" in heads else None
        self.nsp_head = nn.Linear(config.dim, 2, bias=config.bias) if "nsp" in heads else None
        self.labels = labels
        self.classifier = nn.Linear(config.dim, len(labels.names), bias=config.bias) if labels else None

    @classmethod
    def create(cls, config: TransformerConfig, *, seed: int, **given: Any) -> "BERT":
        """A model with fresh fp32 weights on the CPU, a pure function of `seed` and what the constructor is given."""
        with on_meta():
            model = cls(config, **given)
        model.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        init_weights(model, n_layers=config.n_layers, generator=generator)
        if config.positions == "learned" and config.dim >= 8:
            see_neighbours(model.transformer, generator)
            enough = config.n_layers >= 2 and config.n_heads == config.kv_heads >= 3
            if model.pooler and "nsp" in model.heads and config.n_segments == 2 and enough:
                see_shared_tokens(model.transformer, model.pooler.dense, generator)
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

    def label_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the labels, of hidden states (B, T, D): (B, C) of the whole input, or (B, T, C) of each token."""
        assert self.classifier is not None
        read = self.pooler(hidden) if self.pooler is not None and "sequence" in self.heads else hidden
        logits: Tensor = self.classifier(drop(read, self.config.dropout, self.training))
        return logits
