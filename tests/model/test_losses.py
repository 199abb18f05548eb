"""The chunked loss is torch's cross-entropy: its value, its gradients, its handling of labels that do not count."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlpstack.model import IGNORE_INDEX
from nlpstack.model.losses import linear_cross_entropy, loss_chunk, token_scores

QUICK = settings(max_examples=40, deadline=None)  # deadlines fail on a busy machine

V, D = 37, 12


def problem(n: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (2, n, D), a matrix (V, D) and labels (2, n), a third of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, n, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, V, (2, n), generator=generator)
    labels[torch.rand(2, n, generator=generator) < 0.3] = IGNORE_INDEX
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def reference(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    logits = F.linear(hidden, weight, bias).flatten(0, 1)
    return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def graded(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss * 0.37, inputs)]


@QUICK
@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 10_000))
def test_value_and_gradients_are_those_of_cross_entropy(n: int, chunk: int, seed: int) -> None:
    hidden, weight, labels = problem(n, seed)
    found = graded(linear_cross_entropy(hidden, weight, labels, chunk), hidden, weight)
    for mine, theirs in zip(found, graded(reference(hidden, weight, labels), hidden, weight), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@QUICK
@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 10_000))
def test_a_bias_is_added_to_the_logits_and_has_its_gradient(n: int, chunk: int, seed: int) -> None:
    hidden, weight, labels = problem(n, seed)
    bias = torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    found = graded(linear_cross_entropy(hidden, weight, labels, chunk, bias), hidden, weight, bias)
    wanted = graded(reference(hidden, weight, labels, bias), hidden, weight, bias)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_labels_that_are_all_ignored_give_nothing() -> None:
    hidden, weight, labels = problem(5, 0)
    labels[:] = IGNORE_INDEX
    for value in graded(linear_cross_entropy(hidden, weight, labels, 4), hidden, weight):
        assert not value.any()


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, labels = problem(9, 1, torch.float32)
    found = graded(linear_cross_entropy(hidden * 300, weight, labels, 4), hidden, weight)
    assert all(torch.isfinite(value).all() for value in found)
    torch.testing.assert_close(found[0], reference(hidden * 300, weight, labels).detach(), rtol=1e-5, atol=0)


def test_under_autocast_it_is_as_close_as_bf16_allows() -> None:
    hidden, weight, labels = problem(200, 2, torch.float32)
    exact = graded(reference(hidden.double(), weight.double(), labels), hidden, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, labels, 64)
    found = graded(loss, hidden, weight)
    assert [value.dtype for value in found] == [torch.float32] * 3
    for mine, wanted in zip(found, exact, strict=True):
        assert (mine - wanted).norm() <= 0.02 * wanted.norm()


def test_the_sum_is_wide_though_the_products_are_narrow() -> None:
    hidden, weight, labels = problem(2000, 3, torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, labels, 64)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), reference(hidden.double(), weight.double(), labels), rtol=5e-3, atol=0)
    assert [grad.dtype for grad in torch.autograd.grad(loss, (hidden, weight))] == [torch.bfloat16] * 2


@QUICK
@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 10_000))
def test_losses_and_hits_by_token_are_nothing_where_ignored_and_sum_to_the_loss(n: int, chunk: int, seed: int) -> None:
    hidden, weight, labels = problem(n, seed)
    bias = torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for added in (None, bias):
        nll, hits = token_scores(hidden, weight, labels, chunk, added)
        logits = F.linear(hidden, weight, added)
        wanted = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none")
        torch.testing.assert_close(nll, wanted.detach(), rtol=1e-10, atol=1e-10)
        assert torch.equal(hits, logits.argmax(dim=-1) == labels)
        assert not nll[labels == IGNORE_INDEX].any()
        assert not nll.requires_grad


@pytest.mark.parametrize(("vocab_size", "chunk"), [(65, 64527), (50257, 256), (1 << 22, 256), (1 << 24, 256)])
def test_a_chunk_holds_some_four_million_logits_but_never_fewer_than_256_rows(vocab_size: int, chunk: int) -> None:
    assert loss_chunk(vocab_size) == chunk
