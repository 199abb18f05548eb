"""Dropout from random bits: what stays, by how much it is scaled, and that a seed alone decides."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nlpstack.model.kernels import drop

N = 200_000


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_share_goes_and_the_mean_stays(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(N, dtype=dtype, requires_grad=True)
    y = drop(x, share)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    dropped = (y == 0).double().mean().item()
    assert abs(dropped - share) < 5 * math.sqrt(share * (1 - share) / N)
    kept = y[y != 0].double()
    assert y.dtype == dtype
    assert torch.equal(gradient, y)  # of ones: the scale where a value stays
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)), rtol=1e-2, atol=0)
    if dtype == torch.float64:  # the exact share of 65,536, so that nothing is added to the mean on average
        assert kept[0].item() * (1 - round(share * 65536) / 65536) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_a_share_next_to_nothing_or_all_stays_finite(share: float) -> None:
    assert torch.isfinite(drop(torch.ones(1000), share)).all()


def test_neighbours_rows_and_calls_are_independent() -> None:
    torch.manual_seed(1)
    first, second = (drop(torch.ones(400, 500), 0.5) != 0 for _ in range(2))
    pairs = ((first, second), (first[:, 1:], first[:, :-1]), (first[1:], first[:-1]), (first[:, 4:], first[:, :-4]))
    for one, other in pairs:
        assert abs((one == other).double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(one.numel())


def test_a_seed_decides_and_its_state_goes_on() -> None:
    torch.manual_seed(2)
    first = drop(torch.ones(99), 0.5)
    state = torch.get_rng_state()
    second = drop(torch.ones(99), 0.5)
    torch.set_rng_state(state)
    assert torch.equal(drop(torch.ones(99), 0.5), second)
    assert not torch.equal(first, second)
    torch.manual_seed(2)
    assert torch.equal(drop(torch.ones(99), 0.5), first)


def test_nothing_happens_outside_training_or_without_a_share() -> None:
    x, state = torch.randn(50), torch.get_rng_state()
    assert drop(x, 0.5, training=False) is x
    assert drop(x, 0.0) is x
    assert torch.equal(torch.get_rng_state(), state)
    assert (drop(x, 0.5) == 0).any()


def test_recomputing_a_block_draws_the_same_again() -> None:
    torch.manual_seed(3)
    x = torch.ones(1000, requires_grad=True)
    y = checkpoint(lambda x: drop(x, 0.5) ** 2, x, use_reentrant=False)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient != 0, y != 0)


@pytest.mark.slow
def test_compiled_code_draws_each_call_anew_and_uses_the_draw_there_and_back() -> None:
    def twice(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([drop(x, 0.5), drop(x, 0.5)])

    x, compiled = torch.ones(64, 32, requires_grad=True), torch.compile(twice)
    compiled(x)  # compiling draws too
    runs = []
    for _ in range(2):
        torch.manual_seed(4)
        runs.append(compiled(x))
        (gradient,) = torch.autograd.grad(runs[-1].sum(), x)
        assert torch.equal(gradient, runs[-1].sum(dim=0))
    assert torch.equal(*runs)
    first, second = (part != 0 for part in runs[0])
    # Two equal calls are not made one, as they were while the draw was hidden in the operation.
    assert abs((first == second).double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(first.numel())
    assert not torch.equal(compiled(x), runs[0])
