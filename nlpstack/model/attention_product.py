"""softmax(QKᵀ/√K)V in two ways that give the same up to rounding; which one is faster depends on the machine."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nlpstack.model.dropout import dropout as drop


def fused_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, *, causal: bool, dropout: float) -> Tensor:
    """PyTorch's fused kernel: (B, H, T, K), (B, H, S, K) twice -> (B, H, T, K); `allowed` (B or 1, 1, T, S) bool."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout, is_causal=causal)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, *, causal: bool, dropout: float) -> Tensor:
    """The same as two matrix products with the softmax, in fp32 or wider, between them; holds (B, H, T, S) scores."""
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)  # (B, H, T, S)
    if causal:
        allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()  # (T, S)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    return drop(weights, dropout) @ v.to(weights.dtype)


def faster_in_training(device_type: str, dtype: str, dropout: float) -> str:
    """Which of the two to train with: "plain" or "fused"; without gradients it is the fused one.

    On CPUs the products win in bf16 and with dropout, which the kernel leaves to slow ones (benchmarks/RESULTS.md).
    """
    return "plain" if device_type == "cpu" and (dtype != "fp32" or dropout) else "fused"
