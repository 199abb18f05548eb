"""Adapters on linear layers: nothing at first, trained alone, merged without a change."""

import pytest
import torch
from torch import nn

from nlpstack.errors import ConfigError
from nlpstack.model import GPT, TransformerConfig
from nlpstack.model.lora import LoRAConfig, LoRALinear, adapters, add_lora, merge_lora, trainable_state

SHAPE = TransformerConfig(vocab_size=50, max_seq_len=16, dim=32, n_layers=2, n_heads=4)
TOKENS = torch.arange(20).reshape(2, 10)
KINDS = [{}, {"rslora": True}, {"dora": True}, {"dora": True, "rslora": True}]


def gpt() -> GPT:
    return GPT.create(SHAPE, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_at_first_the_model_is_the_base(kind: dict) -> None:
    model = gpt()
    with torch.no_grad():
        before = model(TOKENS)
        add_lora(model, LoRAConfig(rank=4, dropout=0.5, **kind), seed=1)
        after = model.train()(TOKENS)
    if "dora" in kind:  # it divides by the lengths of rows and multiplies by them
        torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    else:
        assert torch.equal(before, after)


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_train_and_frozen_weights_stay(kind: dict) -> None:
    model = gpt()
    names = add_lora(model, LoRAConfig(rank=4, targets=["q_proj", "up_proj"], **kind), seed=1)
    assert len(names) == len(adapters(model)) == 4
    assert {name.rpartition(".")[2] for name in trainable_state(model)} == {"lora_a", "lora_b"} | (
        {"magnitude"} if "dora" in kind else set()
    )
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(5):
        loss = model(TOKENS).logsumexp(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    with torch.no_grad():
        assert not torch.allclose(model(TOKENS), gpt()(TOKENS), atol=1e-3)
        before = model(TOKENS)
        merge_lora(model)
        assert not adapters(model)
        torch.testing.assert_close(model(TOKENS), before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dora", [False, True])
def test_a_layer_is_what_its_formula_says(dora: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(6, 5).double()
    layer = LoRALinear(base, config := LoRAConfig(rank=2, alpha=3.0, dora=dora), size=next(iter([_size(config)])))
    layer.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.lora_b.normal_()
        if dora:
            layer.magnitude.mul_(1.5)
    weight = base.weight + 3.0 / 2 * layer.lora_b @ layer.lora_a
    if dora:
        weight = layer.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
    x = torch.randn(7, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ weight.T + base.bias)
    torch.testing.assert_close(layer.merged(), weight)


def _size(config: LoRAConfig):
    from nlpstack.model.lora import AdapterSize

    return AdapterSize(config.rank, config.alpha)


def test_a_target_that_matches_nothing_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"query: no such layer; there are down_proj, k_proj, out_proj, q_proj"):
        add_lora(gpt(), LoRAConfig(rank=4, targets=["q_proj", "query"]))
