"""One row through the matrix-vector kernel is what any other row is."""

import pytest
import torch
import torch.nn.functional as F

from nlpstack.model import kernels
from nlpstack.model.kernels import Linear, linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (1, 1, 48), (2, 48), (1, 3, 48)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_shape_gives_the_product(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, added = (torch.randn(size, generator=generator) for size in (shape, (20, 48), (20,)))
    found = linear(*(one.to(dtype) for one in (x, weight)), added.to(dtype) if bias else None)
    rounded = [one.to(dtype).double() for one in (x, weight, added)]
    wanted = F.linear(rounded[0], rounded[1], rounded[2] if bias else None)
    assert (found.dtype, found.shape) == (dtype, wanted.shape)
    with torch.no_grad():
        same = linear(*(one.to(dtype) for one in (x, weight)), added.to(dtype) if bias else None)
    for one in (found, same):
        torch.testing.assert_close(one.double(), wanted, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-4)


def test_only_one_row_in_bf16_without_gradients_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(kernels.F, "linear", lambda x, *rest: calls.append(tuple(x.shape)) or x[..., :1])
    layer, row = Linear(8, 4).bfloat16(), torch.ones(1, 1, 8, dtype=torch.bfloat16)
    layer(row)
    with torch.inference_mode():
        layer(row)  # this one
        layer(row.expand(2, 1, 8))
        Linear(8, 4)(row.float())
    assert calls == [(1, 1, 8), (2, 1, 8), (1, 1, 8)]
