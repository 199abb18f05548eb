"""Kernels that are chosen for their speed give what torch's own give."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nlpstack.model import kernels
from nlpstack.model.kernels import Linear, fused_attention, gelu_tanh, linear, plain_attention


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


def with_gradients(compute: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    """What comes of it, and the gradients of its squares' sum."""
    leaves = [one.clone().requires_grad_() for one in given]
    found = compute(*leaves)
    return [found, *torch.autograd.grad(found.square().sum(), leaves)]


@pytest.mark.parametrize("n", [1, 127, 128, 129, 300])
def test_causal_rows_in_blocks_give_the_fused_kernels_results(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    plain, fused = (
        with_gradients(lambda *given, product=product: product(*given, None, causal=True, dropout=0.0), q, k, v)
        for product in (plain_attention, fused_attention)
    )
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gelu_as_it_is_compiled_is_torchs(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    x = torch.cat((torch.linspace(-9, 9, 721), torch.tensor([-1e30, -200.0, 0.0, 200.0]))).to(dtype)
    whole = with_gradients(lambda x: F.gelu(x, approximate="tanh"), x[:-4].double())
    usual = gelu_tanh(x)
    torch.testing.assert_close(usual, F.gelu(x, approximate="tanh"), rtol=0, atol=0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for one, exact in zip(with_gradients(gelu_tanh, x[:-4]), whole, strict=True):
        near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), exact, rtol=near, atol=near)
    assert gelu_tanh(x)[-4:].double().tolist() == [0.0, 0.0, 0.0, 200.0]
