"""Losses over the vocabulary that never hold all logits at once; sums over targets, never means."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # a label that does not count
_CHUNK_LOGITS = 1 << 22  # logits held at a time: 16 MB in fp32


def loss_chunk(vocab_size: int) -> int:
    """Rows of hidden states whose logits are held at a time."""
    return max(64, _CHUNK_LOGITS // vocab_size)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """Summed -log softmax(hidden @ weightᵀ)[label], in nats, fp32 or wider: a scalar.

    hidden (..., D), weight (V, D), labels (...), IGNORE_INDEX where nothing counts. The gradient is made together with
    the loss, chunk by chunk, since for a sum it only has to be scaled afterwards.
    """
    dtype = _product_dtype(hidden)
    rows, flat = hidden.reshape(-1, hidden.shape[-1]).to(dtype), labels.reshape(-1)
    return _LinearCrossEntropy.apply(rows, weight, flat, chunk)  # type: ignore[no-untyped-call, no-any-return]


@torch.no_grad()
def token_nll(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """-log softmax(hidden @ weightᵀ)[label] of each label, in nats, fp32 or wider, 0 where ignored; shape of labels."""
    dtype = _product_dtype(hidden)
    rows, flat = hidden.reshape(-1, hidden.shape[-1]).to(dtype), labels.reshape(-1)
    matrix = weight.to(dtype)
    parts = [
        F.cross_entropy(_logits(h, matrix), y, ignore_index=IGNORE_INDEX, reduction="none")
        for h, y in zip(rows.split(chunk), flat.split(chunk), strict=True)
    ]
    return torch.cat(parts).reshape(labels.shape)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype autocast would multiply in; a custom function has to ask for it itself."""
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype


def _logits(rows: Tensor, matrix: Tensor) -> Tensor:
    logits = rows @ matrix.T  # (n, D) @ (D, V)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            matrix = weight.to(rows.dtype)
            grad_rows = torch.empty_like(rows)
            grad_weight = torch.zeros_like(weight)
            total = torch.zeros((), dtype=torch.promote_types(rows.dtype, torch.float32), device=rows.device)
            for start in range(0, rows.shape[0], chunk):
                part = slice(start, start + chunk)
                logits, counts = _logits(rows[part], matrix), labels[part] != IGNORE_INDEX
                target = labels[part].clamp(min=0)[:, None]  # (n, 1)
                log_probs = logits.log_softmax(dim=-1)  # (n, V)
                total = total - (log_probs.gather(1, target)[:, 0] * counts).sum()
                slope = log_probs.exp().scatter_add(1, target, log_probs.new_full(target.shape, -1.0))
                slope = (slope * counts[:, None]).to(rows.dtype)  # d total / d logits
                grad_rows[part] = slope @ matrix
                grad_weight += slope.T @ rows[part]
        ctx.save_for_backward(grad_rows, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_rows, grad_weight = ctx.saved_tensors
        return (
            (grad_rows * grad_total).to(grad_rows.dtype),
            (grad_weight * grad_total).to(grad_weight.dtype),
            None,
            None,
        )
