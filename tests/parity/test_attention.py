"""Attention and blocks compute what torch.nn's do with the same weights, and what the formula says."""

import math

import pytest
import torch
from torch import Tensor, nn

from nlpstack.model import TransformerConfig
from nlpstack.model.transformer import (
    Attention,
    AttentionMask,
    Block,
    LayerInput,
    attention_mask,
    rotary_angles,
    rotate,
    sinusoidal,
)

B, T, D, H = 3, 7, 24, 4
CPU = torch.device("cpu")
PRODUCTS = pytest.mark.parametrize("product", ["fused", "plain"])  # the two ways to multiply


def config(**values: object) -> TransformerConfig:
    return TransformerConfig(vocab_size=50, max_seq_len=16, dim=D, n_layers=2, n_heads=H, **values)  # type: ignore[arg-type]


def hidden(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomize(module: nn.Module, seed: int = 1) -> None:
    """Weights far from their usual start, biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0, 0.4, generator=generator)


def our_mask(causal: bool, real: Tensor | None) -> AttentionMask:
    return attention_mask(causal=causal, n_new=T, n_keys=T, mask=real, device=CPU)


def given(mask: AttentionMask, product: str = "fused") -> LayerInput:
    return LayerInput(mask, rotary=None, cache=None, plain=product == "plain")


def padding(kind: str) -> Tensor | None:
    """(B, T), True at real tokens, the first row all real."""
    if kind == "none":
        return None
    lengths = torch.tensor([T, 3, 5])[:, None]
    real = torch.arange(T) < lengths
    return real if kind == "right" else real.flip(1)


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        projections = (ours.q_proj, ours.k_proj, ours.v_proj)
        theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in projections]))
        theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in projections]))
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


# -- against torch.nn ------------------------------------------------------------------------------------------------


@PRODUCTS
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pad", ["none", "right", "left"])
def test_attention_matches_multihead_attention(causal: bool, pad: str, product: str) -> None:
    ours = Attention(config(causal=causal)).double()
    randomize(ours)
    theirs = nn.MultiheadAttention(D, H, batch_first=True, dtype=torch.float64)
    copy_attention(ours, theirs)
    real, x = padding(pad), hidden()
    wanted, _ = theirs(
        x,
        x,
        x,
        key_padding_mask=None if real is None else ~real,
        attn_mask=torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None,
        need_weights=False,
    )
    found = ours(x, 0, given(our_mask(causal, real), product))
    where = torch.ones(B, T, dtype=torch.bool) if real is None else real
    torch.testing.assert_close(found[where], wanted[where], rtol=0, atol=1e-12)
    assert torch.isfinite(found).all()  # of padding too


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_block_matches_transformer_encoder_layer(pre_norm: bool, activation: str, causal: bool) -> None:
    shape = config(pre_norm=pre_norm, activation=activation, causal=causal, ffn_dim=40, norm_eps=1e-3)
    ours = Block(shape).double()
    randomize(ours)
    theirs = nn.TransformerEncoderLayer(
        D,
        H,
        40,
        dropout=0.0,
        activation=activation,
        layer_norm_eps=1e-3,
        batch_first=True,
        norm_first=pre_norm,
        dtype=torch.float64,
    )
    copy_attention(ours.attention, theirs.self_attn)
    for mine, other in (
        (ours.attention_norm, theirs.norm1),
        (ours.ffn_norm, theirs.norm2),
        (ours.ffn.up_proj, theirs.linear1),
        (ours.ffn.down_proj, theirs.linear2),
    ):
        other.load_state_dict(mine.state_dict())
    x = hidden()
    mask = torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None
    torch.testing.assert_close(ours(x, 0, given(our_mask(causal, None))), theirs(x, src_mask=mask), rtol=0, atol=1e-11)


# -- against the formula ---------------------------------------------------------------------------------------------


def attention_by_hand(module: Attention, x: Tensor, allowed: Tensor) -> Tensor:
    """softmax(QKᵀ/√K)V head by head; `allowed` (B, T, T)."""
    q, k, v = module.q_proj(x), module.k_proj(x), module.v_proj(x)
    size = module.head_dim
    heads = []
    for head in range(module.n_heads):
        own = slice(head * size, (head + 1) * size)
        group = head // (module.n_heads // module.kv_heads)
        shared = slice(group * size, (group + 1) * size)
        scores = q[..., own] @ k[..., shared].transpose(1, 2) / math.sqrt(size)  # (B, T, T)
        weights = scores.masked_fill(~allowed, -math.inf).softmax(dim=-1)
        heads.append(weights @ v[..., shared])
    return module.out_proj(torch.cat(heads, dim=-1))  # type: ignore[no-any-return]


@PRODUCTS
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("causal", "pad"), [(True, "none"), (True, "left"), (False, "none"), (False, "right")])
def test_attention_is_softmax_of_scaled_products(
    n_kv_heads: int, bias: bool, causal: bool, pad: str, product: str
) -> None:
    module = Attention(config(n_kv_heads=n_kv_heads, bias=bias)).double()
    randomize(module)
    assert module.k_proj.out_features == n_kv_heads * D // H
    real = padding(pad)
    allowed = torch.ones(B, T, T, dtype=torch.bool)
    if causal:
        allowed = allowed.tril()
    where = torch.ones(B, T, dtype=torch.bool)
    if real is not None:
        allowed, where = allowed & real[:, None, :] | torch.eye(T, dtype=torch.bool), real
    found = module(hidden(), 0, given(our_mask(causal, real), product))
    torch.testing.assert_close(found[where], attention_by_hand(module, hidden(), allowed)[where], rtol=0, atol=1e-12)


@PRODUCTS
def test_dropped_attention_weights_leave_the_mean(product: str) -> None:
    module = Attention(config(dropout=0.4)).double()
    randomize(module)
    torch.manual_seed(0)
    with torch.no_grad():
        kept = module.eval()(hidden(), 0, given(our_mask(False, None), product))
        module.train()
        rows = torch.stack([module(hidden(), 0, given(our_mask(False, None), product)) for _ in range(200)])
    errors = (rows.mean(dim=0) - kept) / (rows.std(dim=0) / math.sqrt(200))  # in standard errors
    assert errors.abs().max() < 5
    assert 0.5 < errors.square().mean() < 2


def test_the_mask_is_dense_only_where_it_must_be() -> None:
    def mask(causal: bool, n_new: int, n_keys: int, real: Tensor | None = None) -> AttentionMask:
        return attention_mask(causal=causal, n_new=n_new, n_keys=n_keys, mask=real, device=CPU)

    assert mask(True, 5, 5) == AttentionMask(None, True)
    assert mask(False, 5, 5) == AttentionMask(None, False)
    assert mask(True, 1, 5) == AttentionMask(None, False)  # the newest token sees all
    partly = mask(True, 2, 5)
    assert partly.attn_mask is not None
    assert partly.attn_mask[0, 0].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    padded = mask(True, 3, 3, torch.tensor([[False, True, True]])).attn_mask
    assert padded is not None
    assert padded[0, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]  # padding sees itself
    both = mask(False, 3, 3, torch.tensor([[True, True, False]])).attn_mask
    assert both is not None
    assert both[0, 0].int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]


def test_swiglu_is_a_gated_silu() -> None:
    module = Block(config(activation="swiglu", bias=False)).ffn.double()
    randomize(module)
    x = hidden()
    gate = x @ module.gate_proj.weight.T
    wanted = (gate * torch.sigmoid(gate) * (x @ module.up_proj.weight.T)) @ module.down_proj.weight.T
    torch.testing.assert_close(module(x), wanted, rtol=0, atol=1e-12)


def test_gelu_comes_exact_and_as_tanh() -> None:
    for activation, formula in (
        ("gelu", lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2),
        ("gelu_tanh", lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2),
    ):
        module = Block(config(activation=activation)).ffn.double()
        randomize(module)
        wanted = module.down_proj(formula(module.up_proj(hidden())))
        torch.testing.assert_close(module(hidden()), wanted, rtol=0, atol=1e-12)


def test_the_two_norms_follow_their_formulas() -> None:
    x = hidden()
    layer_norm = Block(config(norm_eps=1e-2)).attention_norm.double()
    rms_norm = Block(config(norm="rmsnorm", norm_eps=1e-2)).attention_norm.double()
    for module in (layer_norm, rms_norm):
        randomize(module)
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-2).sqrt()
    torch.testing.assert_close(layer_norm(x), scaled * layer_norm.weight + layer_norm.bias, rtol=0, atol=1e-12)
    scaled = x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-2).sqrt()
    torch.testing.assert_close(rms_norm(x), scaled * rms_norm.weight, rtol=0, atol=1e-12)
    assert Block(config(bias=False)).attention_norm.bias is None


# -- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_rotary_positions_turn_complex_numbers(theta: float) -> None:
    size = 6
    heads = torch.randn(2, 3, T, size, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 2, 3, 900]])
    cos, sin = rotary_angles(positions, size, theta)
    found = rotate(heads, cos[:, None], sin[:, None])
    frequency = theta ** (-2 * torch.arange(size // 2, dtype=torch.float64) / size)
    angles = positions.double()[:, None, :, None] * frequency  # (B, 1, T, K / 2)
    numbers = torch.complex(heads[..., : size // 2].double(), heads[..., size // 2 :].double())
    turned = numbers * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(found.double(), torch.cat((turned.real, turned.imag), dim=-1), rtol=0, atol=1e-4)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).double()

    def product(at_q: int, at_k: int) -> Tensor:
        turned = [
            rotate(vector[None, None, None], *(part[None, None] for part in rotary_angles(torch.tensor([at]), 8, 1e4)))
            for vector, at in ((q, at_q), (k, at_k))
        ]
        return (turned[0] * turned[1]).sum()

    for at_q, at_k in ((3, 1), (20, 18), (100, 98)):
        torch.testing.assert_close(product(at_q, at_k), product(2, 0), rtol=1e-4, atol=1e-5)
    assert (product(2, 0) - product(3, 0)).abs() > 1e-3


def test_sinusoidal_positions_follow_the_formula() -> None:
    positions, dim = torch.tensor([[0, 1, 7], [2, 50, 255]]), 10
    found = sinusoidal(positions, dim)
    assert found.shape == (2, 3, dim)
    for row in range(2):
        for column in range(3):
            at = positions[row, column].item()
            for i in range(dim // 2):
                angle = at / 10000 ** (2 * i / dim)
                assert found[row, column, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
                assert found[row, column, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)
