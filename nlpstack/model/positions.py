"""Where a token stands: rotary and sinusoidal positions, computed when asked for, so that nothing is stored."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Stretch(NamedTuple):
    """How much longer than plain ones rotary wavelengths are, for a longer context than was trained first."""

    factor: float = 1.0
    original: float = 0  # tokens of the first context; 0: all wavelengths are stretched by the factor
    low: float = 1.0  # a wave that fits it so often, or less, is stretched in full
    high: float = 4.0  # and one that fits so often, or more, not at all


_PLAIN = Stretch()


def rotary_angles(positions: Tensor, head_dim: int, theta: float, stretch: Stretch = _PLAIN) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (..., head_dim / 2) in fp32, for integer positions (...).

    Su et al. 2021, RoFormer, section 3.2.2: frequency i is theta^(-2i / head_dim). Stretched as a whole: Chen et al.
    2023, Position Interpolation; the more the longer a wave is: Llama 3.1, as transformers computes it.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    if stretch.factor != 1:
        times = stretch.original * frequencies / (2 * math.pi)  # that a wave fits the first context
        kept = ((times - stretch.low) / (stretch.high - stretch.low)).clamp(0, 1)  # 0 where there is none
        frequencies = kept * frequencies + (1 - kept) * frequencies / stretch.factor
    angles = positions.to(torch.float32)[..., None] * frequencies  # (..., K / 2)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys (B, H, T, K) by their angles (1 or B, 1, T, K / 2); same shape and dtype.

    Component i is paired with i + K / 2 (the order of Llama's published weights), not with its neighbour.
    """
    first, second = heads.chunk(2, dim=-1)  # each (B, H, T, K / 2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)


def sinusoidal(positions: Tensor, dim: int) -> Tensor:
    """Fixed position vectors (..., dim) in fp32 for integer positions (...).

    Vaswani et al. 2017, section 3.5: sin in the even components, cos in the odd ones, wavelengths up to 10000 * 2 pi.
    """
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    angles = positions.to(torch.float32)[..., None] / 10000.0**exponents  # (..., D / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (..., D)
