"""Learning rates and parameter groups against what they are said to be."""

import math

import pytest
import torch
from pydantic import ValidationError

from nlpstack.model import GPT, TransformerConfig
from nlpstack.train.optim import OptimConfig, learning_rate, make_optimizers


def test_warmup_rises_linearly_to_the_peak_at_its_last_step():
    config = OptimConfig(lr=1.0, warmup=10, schedule="constant")
    assert [learning_rate(config, step, 100) for step in (0, 4, 9, 10, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])


def test_cosine_equals_torchs_annealing():
    config = OptimConfig(lr=0.3, warmup=0, schedule="cosine", min_lr=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.03)
    for step in range(50):
        assert learning_rate(config, step, 50) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        reference.step()


def test_linear_ends_one_step_above_the_lowest_rate():
    config = OptimConfig(lr=1.0, warmup=0, schedule="linear", min_lr=0.0)
    assert [learning_rate(config, step, 4) for step in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_wsd_is_constant_until_the_decay_share_and_does_not_depend_on_steps_before_it():
    config = OptimConfig(lr=1.0, warmup=2, schedule="wsd", decay_share=0.25, min_lr=0.0)
    rates = [learning_rate(config, step, 20) for step in range(20)]
    assert rates[2:15] == [1.0] * 13
    assert rates[15:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert [learning_rate(config, step, 200) for step in range(15)] == rates[:15]


def test_a_warmup_below_one_is_a_share_of_the_steps():
    config = OptimConfig(lr=1.0, warmup=0.1, schedule="constant")
    assert learning_rate(config, 9, 100) == 1.0
    assert learning_rate(config, 8, 100) == pytest.approx(0.9)


def test_only_matrices_are_decayed():
    model = GPT.create(TransformerConfig(vocab_size=50, max_seq_len=8, dim=16, n_layers=1, n_heads=2), seed=0)
    decayed, spared = make_optimizers(model, OptimConfig(weight_decay=0.2))[0].param_groups
    assert decayed["weight_decay"] == 0.2
    assert spared["weight_decay"] == 0.0
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in spared["params"]} == {1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_adamw_takes_the_steps_of_its_paper():
    weight = torch.nn.Linear(3, 2, bias=False).double()
    config = OptimConfig(lr=0.01, weight_decay=0.1, beta1=0.8, beta2=0.9, eps=1e-6)
    (optimizer,) = make_optimizers(weight, config)
    w, m, v = weight.weight.detach().clone(), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 6):
        gradient = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        weight.weight.grad = gradient.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        w = w - 0.01 * 0.1 * w - 0.01 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
        torch.testing.assert_close(weight.weight.detach(), w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "values", [{"lr": -1.0}, {"beta2": 1.0}, {"decay_share": 0.0}, {"min_lr": 1.5}, {"clip": -1.0}]
)
def test_values_that_cannot_be_meant_are_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        OptimConfig(**values)


def test_rates_are_finite_for_every_step_of_any_length():
    for schedule in ("constant", "linear", "cosine", "wsd"):
        for n_steps in (1, 2, 7):
            for warmup in (0, 1, 5, 50, 0.5):
                config = OptimConfig(lr=1.0, warmup=warmup, schedule=schedule)
                rates = [learning_rate(config, step, n_steps) for step in range(n_steps)]
                assert all(math.isfinite(rate) and 0 < rate <= 1 for rate in rates), (schedule, n_steps, warmup)
