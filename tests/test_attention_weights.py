"""The weights against transformers' eager attention, and what must hold of any shape."""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nlpstack.attention import attention_weights
from nlpstack.errors import ModelError
from nlpstack.hub import load_model
from nlpstack.model import GPT, Transformer, TransformerConfig
from nlpstack.model.transformer import init_weights

TOKENS = torch.randint(0, 128, (24,), generator=torch.Generator().manual_seed(1))
SMALL = TransformerConfig(vocab_size=128, max_seq_len=32, dim=48, n_layers=3, n_heads=4)
SHAPES = {
    "learned": SMALL,
    "grouped": replace(SMALL, n_kv_heads=2, bias=False),
    "rotary": replace(SMALL, positions="rotary", norm="rmsnorm", activation="swiglu", n_kv_heads=1),
    "sinusoidal-post-norm": replace(SMALL, positions="sinusoidal", pre_norm=False, dropout=0.5),
    "both-sides": replace(SMALL, causal=False, pre_norm=False, n_segments=2),
}
THEIRS = {
    "gpt2": GPT2Config(vocab_size=128, n_positions=32, n_embd=48, n_layer=3, n_head=4),
    "llama-grouped": LlamaConfig(
        vocab_size=128,
        max_position_embeddings=32,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
}


def transformer(config: TransformerConfig) -> Transformer:
    """Random weights ten times as large as fresh ones, so that the heads have preferences."""
    model = Transformer(config)
    init_weights(model, n_layers=config.n_layers, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10 if weight.dim() == 2 else 1)
    return model.eval()


@pytest.mark.parametrize("name", THEIRS)
def test_weights_equal_those_of_transformers(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    made = (GPT2LMHeadModel if name == "gpt2" else LlamaForCausalLM)(THEIRS[name])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    made.save_pretrained(tmp_path)
    theirs = type(made).from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = torch.cat(theirs(TOKENS[None], output_attentions=True).attentions)  # (L, H, T, T)
    found = attention_weights(load_model(tmp_path).transformer, TOKENS)
    assert (expected.amax(dim=-1) > 0.5).float().mean() > 0.2, "the heads should have preferences"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_rows_sum_to_one_and_only_a_bidirectional_model_looks_ahead(name: str) -> None:
    weights = attention_weights(transformer(SHAPES[name]), TOKENS)
    assert weights.shape == (3, 4, 24, 24)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, 24))
    ahead = weights.triu(diagonal=1)
    assert torch.any(ahead > 0) == (name == "both-sides")


@pytest.mark.parametrize("name", SHAPES)
def test_weights_times_values_are_what_the_layer_mixes(name: str) -> None:
    model = transformer(SHAPES[name])
    attention = model.blocks[1].attention
    seen: dict[str, torch.Tensor] = {}
    attention.v_proj.register_forward_hook(lambda _, args, out: seen.update(v=out))
    attention.out_proj.register_forward_hook(lambda _, args, out: seen.update(mixed=args[0]))
    (weights,) = attention_weights(model, TOKENS, layers=[1])
    v = seen["v"].view(24, attention.kv_heads, -1).transpose(0, 1)  # (kv heads, T, K)
    v = v.repeat_interleave(4 // attention.kv_heads, dim=0)  # (H, T, K)
    torch.testing.assert_close((weights @ v).transpose(0, 1).flatten(1), seen["mixed"][0], atol=1e-5, rtol=0)


def test_chosen_layers_are_those_of_all() -> None:
    model = transformer(SHAPES["rotary"])
    every = attention_weights(model, TOKENS)
    assert torch.equal(attention_weights(model, TOKENS, layers=[2, 0]), every[[2, 0]])


def test_the_model_is_left_as_it_is() -> None:
    model = transformer(SHAPES["grouped"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        hidden = model(TOKENS[None])
        attention_weights(model, TOKENS)
        assert torch.equal(model(TOKENS[None]), hidden)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_of_a_bf16_model_sum_to_one_in_fp32() -> None:
    weights = attention_weights(transformer(SMALL).bfloat16(), TOKENS)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, 24))


def test_a_model_in_training_mode_is_refused() -> None:
    model = GPT.create(SMALL, seed=0)
    with pytest.raises(ModelError, match=r"training mode, where dropout changes them; call \.eval\(\) first"):
        attention_weights(model.transformer, TOKENS)
