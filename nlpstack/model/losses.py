"""Losses over the vocabulary that never hold all logits at once; sums over targets, never means."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # a label that does not count
_CHUNK_LOGITS = 1 << 22  # logits held at a time: 16 MB in fp32
_CHUNK_ROWS = 256  # at least, since each chunk adds to the whole gradient of the unembedding (benchmarks/RESULTS.md)


def loss_chunk(vocab_size: int) -> int:
    """Rows of hidden states whose logits are held at a time."""
    return max(_CHUNK_ROWS, _CHUNK_LOGITS // vocab_size)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int, bias: Tensor | None = None
) -> Tensor:
    """Summed -log softmax(hidden @ weightᵀ + bias)[label], in nats, fp32 or wider: a scalar.

    hidden (..., D), weight (V, D), bias (V,), labels (...), IGNORE_INDEX where nothing counts. The gradient is made
    together with the loss, chunk by chunk, since for a sum it only has to be scaled afterwards.
    """
    rows, flat = hidden.reshape(-1, hidden.shape[-1]).to(product_dtype(hidden)), labels.reshape(-1)
    return _LinearCrossEntropy.apply(rows, weight, bias, flat, chunk)  # type: ignore[no-untyped-call, no-any-return]


@torch.no_grad()
def token_scores(
    hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int, bias: Tensor | None = None, *, ranked: bool = True
) -> tuple[Tensor, Tensor]:
    """-log softmax(hidden @ weightᵀ + bias)[label] of each label, and whether it is the likeliest of all.

    The first in nats, fp32 or wider, 0 where ignored; the second bool, False where ignored; both of labels' shape.
    Finding the likeliest takes as long as the rest: without `ranked` the second is False throughout.
    """
    rows, flat = hidden.reshape(-1, hidden.shape[-1]).to(product_dtype(hidden)), labels.reshape(-1)
    matrix = weight.to(rows.dtype)
    nll, hits = [], []
    for h, y in zip(rows.split(chunk), flat.split(chunk), strict=True):
        logits = _logits(h, matrix, bias)
        nll.append(F.cross_entropy(logits, y, ignore_index=IGNORE_INDEX, reduction="none"))
        hits.append(logits.argmax(dim=-1) == y if ranked else torch.zeros_like(y, dtype=torch.bool))
    return torch.cat(nll).reshape(labels.shape), torch.cat(hits).reshape(labels.shape)


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype autocast would multiply a tensor in; a custom function has to ask for it itself."""
    device_type = tensor.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else tensor.dtype


def _logits(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    logits = rows @ matrix.T  # (n, D) @ (D, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if bias is None else logits + bias


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            matrix = weight.to(rows.dtype)
            grad_rows, grad_weight = torch.empty_like(rows), torch.zeros_like(weight)
            grad_bias = None if bias is None else torch.zeros_like(bias)
            total = torch.zeros((), dtype=torch.promote_types(rows.dtype, torch.float32), device=rows.device)
            for start in range(0, labels.shape[0], chunk):
                part = slice(start, start + chunk)
                logits, counts = _logits(rows[part], matrix, bias), labels[part] != IGNORE_INDEX
                target = labels[part].clamp(min=0)[:, None]  # (n, 1)
                log_probs = logits.log_softmax(dim=-1)  # (n, V)
                total = total - (log_probs.gather(1, target)[:, 0] * counts).sum()
                slope = log_probs.exp().scatter_add(1, target, log_probs.new_full(target.shape, -1.0))
                slope = slope * counts[:, None]  # d total / d logits
                if grad_bias is not None:
                    grad_bias += slope.sum(dim=0)
                slope = slope.to(rows.dtype)
                grad_rows[part] = slope @ matrix
                grad_weight += slope.T @ rows[part]
        ctx.save_for_backward(grad_rows, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if grad is None else (grad * grad_total).to(grad.dtype) for grad in ctx.saved_tensors]
        return (*scaled, None, None)  # of rows, weight and bias; labels and chunk have none
