"""The core: no future, no padding and no cache changes what a token is told; sizes that cannot be are refused."""

from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlpstack.config import build
from nlpstack.errors import ConfigError
from nlpstack.model import GPT, KVCache, Transformer, TransformerConfig
from nlpstack.model.transformer import init_weights

BASE = TransformerConfig(vocab_size=40, max_seq_len=24, dim=24, n_layers=2, n_heads=4, ffn_dim=32)
SHAPES = {
    "learned": BASE,
    "sinusoidal": replace(BASE, positions="sinusoidal", activation="relu", pre_norm=False),
    "rotary": replace(BASE, positions="rotary", norm="rmsnorm", activation="swiglu", bias=False, n_kv_heads=2),
}
ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES)
PRODUCTS = pytest.mark.parametrize("product", ["fused", "plain"])


@cache
def gpt(config: TransformerConfig, *, product: str = "fused", seed: int = 0, scale: float = 12.0) -> GPT:
    """A double-precision model with weights large enough for attention to matter; tests leave it as it is."""
    model = GPT.create(config, seed=seed).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= scale
    model.transformer.train_attention = product  # used in training mode, where dropout is 0 here
    return model.train(product == "plain")


def tokens(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 40, (rows, columns), generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


# -- the future ------------------------------------------------------------------------------------------------------


@PRODUCTS
@ALL_SHAPES
@settings(max_examples=8, deadline=None)
@given(at=st.integers(1, 23), seed=st.integers(0, 1000))
def test_a_future_token_never_changes_the_past(shape: str, product: str, at: int, seed: int) -> None:
    model, row = gpt(SHAPES[shape], product=product), tokens(1, 24)
    changed = row.clone()
    changed[:, at:] = tokens(1, 24 - at, seed)
    changed[:, at] = (row[:, at] + 1) % 40
    with torch.no_grad():
        before, after = model(row), model(changed)
    close(after[:, :at], before[:, :at])
    assert (after[:, at] - before[:, at]).abs().max() > 1e-3
    row = torch.arange(24)[None]  # every token at one place, so an embedding's gradient is its column's
    (grad,) = torch.autograd.grad(model.transformer(row)[0, at - 1].square().sum(), model.transformer.tokens.weight)
    assert not grad[at:24].any()
    assert grad[:at].abs().sum(dim=1).gt(0).all()


@ALL_SHAPES
def test_a_model_that_is_not_causal_sees_both_sides(shape: str) -> None:
    model = Transformer(replace(SHAPES[shape], causal=False)).double()
    init_weights(model, n_layers=2, generator=torch.Generator().manual_seed(0))
    row = tokens(1, 8)
    changed = row.clone()
    changed[0, 7] = (row[0, 7] + 1) % 40
    assert (model(row) - model(changed)).abs().amax(dim=-1).gt(1e-9).all()


# -- padding ---------------------------------------------------------------------------------------------------------


@PRODUCTS
@ALL_SHAPES
@pytest.mark.parametrize("causal", [True, False])
@settings(max_examples=6, deadline=None)
@given(n=st.integers(1, 16), left=st.integers(0, 5), right=st.integers(0, 3), seed=st.integers(0, 1000))
def test_padding_on_either_side_changes_nothing(
    shape: str, product: str, causal: bool, n: int, left: int, right: int, seed: int
) -> None:
    if not causal:
        model = Transformer(replace(SHAPES[shape], causal=False)).double()
        init_weights(model, n_layers=2, generator=torch.Generator().manual_seed(0))
        model.train_attention = product
    else:
        model = gpt(SHAPES[shape], product=product).transformer
    row, filling = tokens(1, n, seed), tokens(1, left + right, seed + 1)
    padded = torch.cat((filling[:, :left], row, filling[:, left:]), dim=1)
    other = tokens(1, padded.shape[1], seed + 2)  # a row without padding beside it
    mask = torch.ones(2, padded.shape[1], dtype=torch.bool)
    mask[0, :left], mask[0, left + n :] = False, False
    with torch.no_grad():
        found = model(torch.cat((padded, other)), mask=mask)
        close(found[:1, left : left + n], model(row))
        close(found[1:], model(other))
    assert torch.isfinite(found).all()


# -- the cache -------------------------------------------------------------------------------------------------------


def chunks(sizes: list[int], total: int) -> Iterator[slice]:
    start = 0
    for size in [*sizes, total]:
        if start < total:
            yield slice(start, min(start + size, total))
            start += size


@ALL_SHAPES
@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), max_size=12),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    pad=st.booleans(),
)
def test_cached_passes_give_what_one_pass_gives(shape: str, sizes: list[int], lengths: list[int], pad: bool) -> None:
    model = gpt(SHAPES[shape])
    total = max(lengths) if pad else 20
    rows = tokens(len(lengths), total)
    mask = torch.arange(total) >= total - torch.tensor(lengths)[:, None] if pad else None  # padded on the left
    cache = KVCache.for_model(model.transformer, batch_size=len(lengths), max_len=total)
    with torch.no_grad():
        whole = model(rows, mask=mask)
        parts = [
            model(rows[:, part], mask=None if mask is None else mask[:, part], cache=cache)
            for part in chunks(sizes, total)
        ]
    found = torch.cat(parts, dim=1)
    where = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask
    close(found[where], whole[where])
    assert cache.length == total


def test_a_padded_prompt_may_be_followed_by_tokens_without_a_mask() -> None:
    model = gpt(BASE)
    row = tokens(1, 9)
    with torch.no_grad():
        whole = model(row)
        cache = KVCache.for_model(model.transformer, batch_size=1, max_len=11)
        model(torch.cat((row[:, :2], row[:, :5]), dim=1), mask=torch.tensor([[False] * 2 + [True] * 5]), cache=cache)
        parts = [model(row[:, at : at + 1], cache=cache) for at in range(5, 9)]
    close(torch.cat(parts, dim=1), whole[:, 5:])


def test_the_last_columns_logits_are_those_of_the_whole_pass() -> None:
    model, rows = gpt(BASE), tokens(2, 6)
    with torch.no_grad():
        close(model.next_logits(rows), model(rows)[:, -1])


def test_a_cache_is_as_small_as_its_heads_and_refuses_more_than_it_holds() -> None:
    model = GPT.create(SHAPES["rotary"], seed=0)
    cache = KVCache.for_model(model.transformer, batch_size=3, max_len=5)
    assert [tuple(keys.shape) for keys in cache.keys] == [(3, 2, 5, 6)] * 2
    with pytest.raises(AssertionError, match="cache of 5 columns"):
        model(tokens(3, 6), cache=cache)


def test_nothing_is_left_on_the_model_for_the_next_call() -> None:
    model, rows = gpt(BASE), tokens(2, 6)
    with torch.no_grad():
        first = model(rows)
        model(rows, cache=KVCache.for_model(model.transformer, batch_size=2, max_len=9))
        model(rows[:, :3], mask=torch.tensor([[True, True, True], [False, True, True]]))
        assert torch.equal(model(rows), first)


# -- gradients -------------------------------------------------------------------------------------------------------


@ALL_SHAPES
def test_recomputed_activations_give_the_same_gradients(shape: str) -> None:
    grads = []
    for recompute in (False, True):
        model = GPT.create(replace(SHAPES[shape], dropout=0.1), seed=0).train()
        model.transformer.checkpoint_activations = recompute
        torch.manual_seed(0)  # dropout draws the same again when it is recomputed
        model(tokens(2, 12)).logsumexp(dim=-1).sum().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


@ALL_SHAPES
def test_every_weight_learns(shape: str) -> None:
    model = gpt(SHAPES[shape])
    loss = model(tokens(2, 24)).logsumexp(dim=-1).square().sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    for name, grad in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        if "k_proj.bias" not in name:  # what is added to all of a query's scores changes none of its weights
            assert grad.abs().max() > 1e-9, name


# -- segments and positions ------------------------------------------------------------------------------------------


def test_segments_are_told_apart_and_default_to_the_first() -> None:
    model = Transformer(replace(BASE, n_segments=2, causal=False)).double()
    init_weights(model, n_layers=2, generator=torch.Generator().manual_seed(0))
    row = tokens(1, 6)
    zeros = torch.zeros_like(row)
    close(model(row), model(row, segments=zeros))
    assert (model(row) - model(row, segments=zeros + 1)).abs().max() > 1e-6


@ALL_SHAPES
def test_order_matters(shape: str) -> None:
    model, row = gpt(SHAPES[shape]), tokens(1, 6)
    assert (model(row)[:, -1] - model(row[:, [1, 0, 2, 3, 4, 5]])[:, -1]).abs().max() > 1e-6


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"dim": 10, "n_heads": 4}, "dim=10 must be a multiple of n_heads=4"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_heads=4 must be a multiple of n_kv_heads=3"),
        ({"n_heads": 4, "n_kv_heads": 8}, "n_heads=4 must be a multiple of n_kv_heads=8"),
        ({"dim": 12, "n_heads": 4, "positions": "rotary"}, "even dim / n_heads, not 3"),
        ({"dim": 9, "n_heads": 3, "positions": "sinusoidal"}, "even dim, not 9"),
        ({"n_layers": 0}, "model.n_layers=0: input should be greater than 0"),
        ({"max_seq_len": 0}, "model.max_seq_len=0: input should be greater than 0"),
        ({"n_heads": 0}, "model.n_heads=0: input should be greater than 0"),
        ({"dim": 0}, "model.dim=0: input should be greater than 0"),
        ({"ffn_dim": -1}, "model.ffn_dim=-1: input should be greater than or equal to 0"),
        ({"vocab_size": -1}, "model.vocab_size=-1: input should be greater than or equal to 0"),
        ({"dropout": 1.0}, "model.dropout=1.0: input should be less than 1"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"norm_eps": 0.0}, "model.norm_eps=0.0: input should be greater than 0"),
        ({"rope_theta": -1.0}, "model.rope_theta=-1.0: input should be greater than 0"),
        ({"positions": "alibi"}, "'learned', 'sinusoidal' or 'rotary'"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build(TransformerConfig, values, "model", {}, "recipe")


def test_a_shape_has_at_most_twenty_values_and_all_have_defaults() -> None:
    assert len(fields(TransformerConfig)) <= 20
    assert TransformerConfig(**asdict(TransformerConfig())) == TransformerConfig()
