"""How an encoder of two texts begins: [CLS] sees how many of one text's tokens also stand in the other.

Whether a text goes on from another is mostly told by the words that both have, but from noise the attention that would
compare them does not form while the loss of hidden tokens changes the same weights (benchmarks/RESULTS.md). Here the
two segment embeddings begin as a direction and its opposite. The last head of the first block looks at the tokens that
are the same as its own and passes on that direction, which cancels where they stand in both texts. In the second block
one head looks at its own text and one at the other, so that [CLS] has the mean of each, and the pooler begins with
weights that pass it on. All of it is trained like the rest.
"""

import math

import torch
from torch import nn

from nlpstack.model.neighbours import OUT_STD, TOKEN_STD
from nlpstack.model.transformer import Block, Transformer

_SEGMENT = 0.3  # norm of a segment embedding, as a share of a token's
_SAME = 12.0  # logit of a token that is the same, about
_SIDE = 3.0  # logit of a token of the text looked at; of the other text it is the opposite
_FOUND = 1.5  # how strongly the first block tells what it has found
_MEAN = 3.0  # how strongly the second one tells [CLS] its mean


@torch.no_grad()
def see_shared_tokens(transformer: Transformer, pooler: nn.Linear, generator: torch.Generator) -> None:
    """Set segment embeddings, a head of the first block, two of the second and the pooler; after `see_neighbours`."""
    config = transformer.config
    size, width, scale = config.dim - config.dim // 8 * 2, config.head_dim, 1 / math.sqrt(config.dim)
    first, second = transformer.blocks[0], transformer.blocks[1]
    assert isinstance(first, Block)
    assert isinstance(second, Block)

    def normal(*shape: int) -> torch.Tensor:
        return torch.empty(shape).normal_(generator=generator)

    basis = torch.linalg.qr(normal(size, size))[0]  # of the part of the width in which tokens are told apart
    side, shared = torch.zeros(2, config.dim)
    side[:size], shared[:size] = basis[0], basis[1]
    norm = _SEGMENT * TOKEN_STD * math.sqrt(config.dim)
    transformer.segments.weight[0], transformer.segments.weight[1] = norm * side, -norm * side
    apart = _SEGMENT * math.sqrt(config.dim)  # what a normalised state's product with `side` is, about

    attention, row = first.attention, config.dim - width
    reads = basis[-min(width, size - 2) :]
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[row:] *= 0.1
        projection.weight[row : row + len(reads), :size] = math.sqrt(_SAME * math.sqrt(width) / len(reads)) * reads
    attention.v_proj.weight[row] = side
    attention.out_proj.weight[:, row] = _FOUND * shared

    attention = second.attention
    attention.v_proj.weight.mul_(scale / attention.v_proj.weight.std())
    attention.out_proj.weight.mul_(OUT_STD * scale / attention.out_proj.weight.std())
    for head, sign in ((0, 1.0), (1, -1.0)):
        row = head * width
        reads = math.sqrt(_SIDE * math.sqrt(width)) / apart * side
        attention.q_proj.weight[row], attention.k_proj.weight[row] = reads, sign * reads
        attention.v_proj.weight[row] = shared
        attention.out_proj.weight[:, row] = _MEAN * scale * normal(config.dim)
    pooler.weight.mul_(scale / pooler.weight.std())
