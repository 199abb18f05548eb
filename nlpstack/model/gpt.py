"""GPT: the core with causal attention, and an unembedding that scores the next token."""

from typing import Any

import torch
from torch import Tensor, nn

from nlpstack.model.kernels import linear
from nlpstack.model.transformer import KVCache, Transformer, TransformerConfig, init_weights, on_meta


class GPT(nn.Module):
    """A causal language model. `tokenizer`, where set, is the one its vocabulary stands for."""

    def __init__(self, config: TransformerConfig, tokenizer: Any = None) -> None:
        super().__init__()
        assert config.causal, "a GPT sees only the past"
        self.config, self.tokenizer = config, tokenizer
        self.base: tuple[str, str] | None = None  # of a model with adapters: where its base stands, and its hash
        self.transformer = Transformer(config)
        self.lm_head = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)

    @classmethod
    def create(cls, config: TransformerConfig, *, seed: int, tokenizer: Any = None) -> "GPT":
        """A model with fresh fp32 weights on the CPU, a pure function of config and seed."""
        with on_meta():
            model = cls(config, tokenizer)
        model.to_empty(device="cpu")
        init_weights(model, n_layers=config.n_layers, generator=torch.Generator().manual_seed(seed))
        return model

    @property
    def unembedding(self) -> Tensor:
        """The matrix (V, D) that turns hidden states into logits."""
        return self.transformer.tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of tokens (B, T); mask (B, T) is True at real tokens."""
        return linear(self.transformer(tokens, mask=mask, cache=cache), self.unembedding)

    def next_logits(self, tokens: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, V), fp32 or wider, of the token after the last column of tokens (B, T), which are padded left."""
        hidden = self.transformer(tokens, mask=mask, cache=cache)[:, -1]  # (B, T, D) -> (B, D)
        logits = linear(hidden, self.unembedding)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
