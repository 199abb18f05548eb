"""A fresh GPT is a pure function of its shape and seed, and starts where the papers say."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from nlpstack.data.batch import Batch, Loader, Shuffled
from nlpstack.model import GPT, IGNORE_INDEX, TransformerConfig
from nlpstack.model.losses import linear_cross_entropy
from nlpstack.model.transformer import on_meta

SHAPE = TransformerConfig(vocab_size=300, max_seq_len=32, dim=64, n_layers=3, n_heads=4)


def test_equal_seeds_give_equal_models_whatever_was_drawn_before() -> None:
    first = GPT.create(SHAPE, seed=1).state_dict()
    torch.rand(7)
    with torch.device("meta"):
        pass
    second, other = GPT.create(SHAPE, seed=1).state_dict(), GPT.create(SHAPE, seed=2).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["transformer.tokens.weight"], other["transformer.tokens.weight"])


def test_making_a_model_moves_no_global_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    GPT.create(SHAPE, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_without_memory_has_the_same_shapes() -> None:
    with on_meta():
        empty = GPT(SHAPE)
    assert all(parameter.is_meta for parameter in empty.parameters())
    made = GPT.create(SHAPE, seed=0)
    shapes = {name: value.shape for name, value in made.state_dict().items()}
    assert {name: value.shape for name, value in empty.state_dict().items()} == shapes
    assert {(value.dtype, value.device.type) for value in made.parameters()} == {(torch.float32, "cpu")}
    assert (nn.Linear(4, 4).weight != 0).any()  # modules made afterwards have initial values again


@pytest.mark.parametrize("tied", [True, False])
def test_the_unembedding_is_tied_or_its_own(tied: bool) -> None:
    model = GPT.create(replace(SHAPE, tied=tied), seed=0)
    assert (model.unembedding is model.transformer.tokens.weight) == tied
    names = set(model.state_dict())
    assert ("lm_head.weight" in names) == (not tied)
    assert model(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 5, 300)


def test_initial_values_are_as_documented() -> None:
    shape = replace(SHAPE, tied=False, n_segments=2, activation="swiglu")
    model = GPT.create(shape, seed=0)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            std = 0.02 / (
                math.sqrt(2 * shape.n_layers) if name.endswith(("out_proj.weight", "down_proj.weight")) else 1
            )
            spread = 5 / math.sqrt(2 * value.numel())  # five standard errors of a standard deviation
            assert value.std().item() == pytest.approx(std, rel=spread), name
            assert abs(value.mean().item()) < 5 * std / math.sqrt(value.numel()), name


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_the_first_loss_is_that_of_a_guess(positions: str, pre_norm: bool) -> None:
    model = GPT.create(replace(SHAPE, positions=positions, pre_norm=pre_norm), seed=0)  # type: ignore[arg-type]
    rows = torch.randint(0, 300, (4, 33), generator=torch.Generator().manual_seed(0))
    hidden = model.transformer(rows[:, :-1])
    loss = linear_cross_entropy(hidden, model.unembedding, rows[:, 1:], 64) / rows[:, 1:].numel()
    assert abs(loss.item() - math.log(300)) < 0.5


def test_a_gpt_that_sees_the_future_cannot_be_made() -> None:
    with pytest.raises(AssertionError, match="only the past"):
        GPT.create(replace(SHAPE, causal=False), seed=0)


# -- micro-batches ---------------------------------------------------------------------------------------------------


def ragged(examples: list[tuple[int, int]]) -> Batch:
    """Rows of unequal numbers of labels, some of which have none to speak of."""
    rows = torch.stack([torch.randint(0, 300, (33,), generator=torch.Generator().manual_seed(i)) for _, i in examples])
    labels = rows[:, 1:].clone()
    for row, (_, index) in zip(labels, examples, strict=True):
        row[: (index * 11) % 32] = IGNORE_INDEX
        row[31 - index % 5 :] = IGNORE_INDEX
    return Batch(tokens=rows[:, :-1], labels={"lm": labels}, n_targets={"lm": int((labels != IGNORE_INDEX).sum())})


def gradients(shape: TransformerConfig, micro_batch: int, product: str) -> torch.Tensor:
    """All gradients of one step in one row, added up as the trainer adds them."""
    model = GPT.create(shape, seed=0).train()
    model.transformer.train_attention = product
    batches = Loader(Shuffled(12, batch_size=12, seed=1), ragged, micro_batch=micro_batch).micro_batches(0)
    total = sum(batch.n_targets["lm"] for batch in batches)
    for batch in batches:
        hidden = model.transformer(batch.tokens)
        (linear_cross_entropy(hidden, model.unembedding, batch.labels["lm"], 100) / total).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]


@pytest.mark.parametrize("product", ["fused", "plain"])
@pytest.mark.parametrize("tied", [True, False])
def test_accumulated_micro_batches_give_the_gradient_of_the_batch(tied: bool, product: str) -> None:
    shape = replace(SHAPE, tied=tied)
    whole = gradients(shape, 12, product)
    assert whole.norm() > 0.1
    for micro_batch in (1, 5):
        error = (gradients(shape, micro_batch, product) - whole).norm() / whole.norm()
        assert error <= 1e-6, micro_batch
