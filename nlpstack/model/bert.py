"""BERT: the core with attention to both sides, and heads that guess hidden tokens and the next sentence."""

import math
from collections.abc import Collection
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlpstack.model.heads import ALL_HEADS, HEADS, Head, Labels, MaskedLMHead, Pooler
from nlpstack.model.kernels import drop
from nlpstack.model.transformer import Block, Transformer, TransformerConfig, init_weights, on_meta


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


# A fresh BERT's first block sees each token's neighbours, and [CLS] what its two texts share. A hidden token says
# nothing of itself, so all that can be guessed of it comes through attention. From noise, attention takes long to find
# that neighbours matter, and does not find what two texts share (benchmarks/RESULTS.md). So both begin as they are to
# become; all of it is trained like the rest.
_TOKEN_STD = 0.06  # three times the usual: the sum of embeddings is normalised, and what tokens say is to prevail in it
_PLACE_STD = 0.06  # of the sinusoids
_SLOWEST = 0.1  # radians a token: of frequencies from 1 down to this, which tell near places apart
_PEAK = 11.5  # logit of the distance looked at, about; it weighs some 0.6, the distances beside it 0.2 each
_OUT_STD = 0.4  # times 1 / sqrt(dim)
_SEGMENT = 0.3  # norm of a segment embedding, as a share of a token's
_SAME = 12.0  # logit of a token that is the same, about
_SIDE = 3.0  # logit of a token of the text looked at; of the other text it is the opposite
_FOUND = 1.5  # how strongly the first block tells what it has found
_MEAN = 3.0  # how strongly the second one tells [CLS] its mean


@torch.no_grad()
def see_neighbours(transformer: Transformer, generator: torch.Generator) -> None:
    """Set embeddings and the first block's attention so that each head looks a fixed distance away.

    The last quarter of the width begins as places alone, sinusoids, and the rest as tokens alone; each head reads the
    places, and begins with its weight on one distance: 1 to the left, 1 to the right, 2 to the left, and so on.
    """
    config = transformer.config
    attention, size = cast(Block, transformer.blocks[0]).attention, config.dim // 8 * 2
    places = slice(config.dim - size, config.dim)
    frequencies = _SLOWEST ** (torch.arange(0, size, 2) / size)  # (size / 2,)
    transformer.tokens.weight.mul_(_TOKEN_STD / transformer.tokens.weight.std())
    transformer.tokens.weight[:, places] = 0.0
    table = transformer.positions.weight
    angles = torch.arange(len(table))[:, None] * frequencies
    table.zero_()
    table[:, places] = math.sqrt(2) * _PLACE_STD * torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
    width = config.head_dim
    energy = config.dim * size * _PLACE_STD**2 / (size * _PLACE_STD**2 + (config.dim - size) * _TOKEN_STD**2)
    scale = math.sqrt(_PEAK * math.sqrt(width) / (energy * min(1.0, width / size)))
    group = config.n_heads // config.kv_heads
    queries = attention.q_proj.weight.mul_(0.1).view(config.n_heads, width, -1)
    keys = attention.k_proj.weight.mul_(0.1).view(config.kv_heads, width, -1)
    for number in range(config.kv_heads):
        square = torch.randn(max(width, size), max(width, size), generator=generator)
        reads = scale * torch.linalg.qr(square)[0][:width, :size]  # (K, size), orthonormal but for the scale
        keys[number, :, places] = reads
        for head in range(number * group, (number + 1) * group):
            distance = (head // 2 + 1) * (-1 if head % 2 == 0 else 1)
            cos, sin = (distance * frequencies).cos(), (distance * frequencies).sin()
            # (size, size): turns the sinusoids of a place into those of the place `distance` tokens on.
            moved = torch.block_diag(*torch.stack((cos, sin, -sin, cos), dim=-1).view(-1, 2, 2))
            queries[head, :, places] = reads @ moved
    attention.v_proj.weight.mul_(1 / math.sqrt(config.dim) / attention.v_proj.weight.std())
    attention.out_proj.weight.mul_(_OUT_STD / math.sqrt(config.dim) / attention.out_proj.weight.std())


@torch.no_grad()
def see_shared_tokens(transformer: Transformer, pooler: nn.Linear, generator: torch.Generator) -> None:
    """Set segment embeddings, a head of the first block, two of the second and the pooler; after `see_neighbours`.

    The two segment embeddings begin as a direction and its opposite. The last head of the first block looks at the
    tokens that are the same as its own and passes on that direction, which cancels where they stand in both texts. In
    the second block one head looks at its own text, one at the other: [CLS] has each mean, and the pooler passes it on.
    """
    config = transformer.config
    size, width, scale = config.dim - config.dim // 8 * 2, config.head_dim, 1 / math.sqrt(config.dim)
    first, second = (cast(Block, block).attention for block in transformer.blocks[:2])

    # A basis of the part of the width in which tokens are told apart.
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    side, shared = nn.functional.pad(basis[:2], (0, config.dim - size))
    norm = _SEGMENT * _TOKEN_STD * math.sqrt(config.dim)
    transformer.segments.weight[0], transformer.segments.weight[1] = norm * side, -norm * side
    apart = _SEGMENT * math.sqrt(config.dim)  # what a normalised state's product with `side` is, about

    row = config.dim - width
    reads = basis[-min(width, size - 2) :]
    for projection in (first.q_proj, first.k_proj):
        projection.weight[row:] *= 0.1
        projection.weight[row : row + len(reads), :size] = math.sqrt(_SAME * math.sqrt(width) / len(reads)) * reads
    first.v_proj.weight[row] = side
    first.out_proj.weight[:, row] = _FOUND * shared

    second.v_proj.weight.mul_(scale / second.v_proj.weight.std())
    second.out_proj.weight.mul_(_OUT_STD * scale / second.out_proj.weight.std())
    for head, sign in ((0, 1.0), (1, -1.0)):
        row = head * width
        reads = math.sqrt(_SIDE * math.sqrt(width)) / apart * side
        second.q_proj.weight[row], second.k_proj.weight[row] = reads, sign * reads
        second.v_proj.weight[row] = shared
        second.out_proj.weight[:, row] = _MEAN * scale * torch.randn(config.dim, generator=generator)
    pooler.weight.mul_(scale / pooler.weight.std())
