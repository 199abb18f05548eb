"""How an encoder with learned positions begins: its first block sees each token's neighbours.

A hidden token says nothing of itself, so all that can be guessed of it comes through attention. From noise, attention
takes long to find that neighbours matter (benchmarks/RESULTS.md). Here the last quarter of the width begins as places
alone, sinusoids, and the rest as tokens alone; each head of the first block reads the places, and begins with its
weight on one distance: 1 to the left, 1 to the right, 2 to the left, and so on. All of it is trained like the rest.
"""

import math

import torch
from torch import Tensor

from nlpstack.model.transformer import Block, Transformer

TOKEN_STD = 0.06  # three times the usual: the sum of embeddings is normalised, and what tokens say is to prevail in it
_PLACE_STD = 0.06  # of the sinusoids
_SLOWEST = 0.1  # radians a token: of frequencies from 1 down to this, which tell near places apart
_PEAK = 11.5  # logit of the distance looked at, about; it weighs some 0.6, the distances beside it 0.2 each
OUT_STD = 0.4  # times 1 / sqrt(dim)


@torch.no_grad()
def see_neighbours(transformer: Transformer, generator: torch.Generator) -> None:
    """Set embeddings and the first block's attention so that each head looks a fixed distance away."""
    config = transformer.config
    block, size = transformer.blocks[0], config.dim // 8 * 2
    assert isinstance(block, Block)
    attention = block.attention
    places = slice(config.dim - size, config.dim)
    frequencies = _SLOWEST ** (torch.arange(0, size, 2) / size)  # (size / 2,)
    transformer.tokens.weight.mul_(TOKEN_STD / transformer.tokens.weight.std())
    transformer.tokens.weight[:, places] = 0.0
    table = transformer.positions.weight
    angles = torch.arange(len(table))[:, None] * frequencies
    table.zero_()
    table[:, places] = math.sqrt(2) * _PLACE_STD * torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
    width = config.head_dim
    energy = config.dim * size * _PLACE_STD**2 / (size * _PLACE_STD**2 + (config.dim - size) * TOKEN_STD**2)
    scale = math.sqrt(_PEAK * math.sqrt(width) / (energy * min(1.0, width / size)))
    group = config.n_heads // config.kv_heads
    for number in range(config.kv_heads):
        rows = slice(number * width, (number + 1) * width)
        square = torch.empty(max(width, size), max(width, size)).normal_(generator=generator)
        reads = scale * torch.linalg.qr(square)[0][:width, :size]  # (K, size), orthonormal but for the scale
        attention.k_proj.weight[rows] *= 0.1
        attention.k_proj.weight[rows, places] = reads
        for head in range(number * group, (number + 1) * group):
            rows = slice(head * width, (head + 1) * width)
            distance = (head // 2 + 1) * (-1 if head % 2 == 0 else 1)
            attention.q_proj.weight[rows] *= 0.1
            attention.q_proj.weight[rows, places] = reads @ _moved(frequencies, distance)
    attention.v_proj.weight.mul_(1 / math.sqrt(config.dim) / attention.v_proj.weight.std())
    attention.out_proj.weight.mul_(OUT_STD / math.sqrt(config.dim) / attention.out_proj.weight.std())


def _moved(frequencies: Tensor, distance: int) -> Tensor:
    """The matrix (size, size) that turns the sinusoids of a place into those of the place `distance` tokens on."""
    size = 2 * len(frequencies)
    even = torch.arange(0, size, 2)
    cos, sin = (distance * frequencies).cos(), (distance * frequencies).sin()
    moved = torch.zeros(size, size)
    moved[even, even], moved[even, even + 1] = cos, sin
    moved[even + 1, even], moved[even + 1, even + 1] = -sin, cos
    return moved
