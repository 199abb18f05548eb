"""Attention, GELU, linear layers and dropout, in ways that give the same; which is faster depends on the machine."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 1 << 16  # that a share of dropout is told in
_BLOCK = 128  # rows of causal attention at a time (benchmarks/RESULTS.md)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, *, causal: bool, dropout: float) -> Tensor:
    """PyTorch's fused kernel: (B, H, T, K), (B, H, S, K) twice -> (B, H, T, K); `allowed` (B or 1, 1, T, S) bool."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout, is_causal=causal)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, *, causal: bool, dropout: float) -> Tensor:
    """The same as matrix products with the softmax, in fp32 or wider, between them; holds (B, H, T, S) scores.

    Causal rows go in blocks, each with the keys up to its last row alone: as exact, and less to do.
    """
    if causal:
        n = q.shape[-2]
        allowed = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        blocks = [slice(at, min(at + _BLOCK, n)) for at in range(0, n, _BLOCK)]
        parts = [(q[..., b, :], k[..., : b.stop, :], v[..., : b.stop, :], allowed[b, : b.stop]) for b in blocks]
        return torch.cat([plain_attention(*part, causal=False, dropout=dropout) for part in parts], dim=-2)
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)  # (B, H, T, S)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    return drop(weights, dropout) @ v.to(weights.dtype)


def faster_in_training(device_type: str, dtype: str, dropout: float) -> str:
    """Which of the two to train with: "plain" or "fused"; without gradients it is the fused one.

    On CPUs the products win in bf16 and with dropout, which the kernel leaves to slow ones (benchmarks/RESULTS.md).
    """
    return "plain" if device_type == "cpu" and (dtype != "fp32" or dropout) else "fused"


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (Hendrycks & Gimpel 2016, section 2), elementwise."""
    if not torch.compiler.is_compiling() or x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    # (1 + tanh u) / 2 is sigmoid 2u, and compiled code has an exponential that is faster than its tanh.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    twice_u = 2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return (wide * torch.sigmoid(twice_u)).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Wx + b: (..., in) -> (..., out); of one bf16 row on a CPU, as in decoding, by `mv` (benchmarks/RESULTS.md)."""
    is_row = x.numel() == x.shape[-1] and x.dtype == weight.dtype == torch.bfloat16
    if not is_row or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    row = x.flatten()
    product = torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row)
    return product.view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """torch's, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


@torch.library.custom_op("nlpstack::kept", mutates_args=())
def kept(like: Tensor, n_dropped: int, seed: Tensor) -> Tensor:
    """Which values of a tensor stay, bool of its shape, by bits of SFC64; `n_dropped` of 65,536 go, on average.

    A function of its arguments alone, so compiled code may move it, or do it twice.
    """
    bits = np.random.SFC64(int(seed)).random_raw(-(-like.numel() // 4)).view(np.uint16)
    return torch.from_numpy(bits[: like.numel()] >= n_dropped).view(like.shape)


@kept.register_fake
def _(like: Tensor, n_dropped: int, seed: Tensor) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.bool)


def drop(x: Tensor, share: float, training: bool = True) -> Tensor:
    """Dropout: in training zero this share of the values at random, scale the others so that the mean stays.

    Srivastava et al. 2014, Dropout, section 10. On CPUs by 16 random bits a value: torch draws one after the other.
    """
    if not (training and share):
        return x
    if x.device.type != "cpu":
        return F.dropout(x, share)
    n_dropped = min(round(share * _STEPS), _STEPS - 1)
    seed = torch.randint(2**63 - 1, ())  # from torch's generator, whose state a checkpoint has
    scaled: Tensor = kept(x, n_dropped, seed).to(x.dtype) * (_STEPS / (_STEPS - n_dropped))
    return x * scaled
