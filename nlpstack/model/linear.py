"""The product of a linear layer, by the faster kernel for the shape at hand."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Wx + b: (..., in) -> (..., out).

    One row in bf16 on a CPU, as in decoding, goes through the matrix-vector kernel (benchmarks/RESULTS.md).
    """
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
