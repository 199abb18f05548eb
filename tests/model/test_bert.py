"""BERT is the core with attention to both sides, and heads on it."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nlpstack.attention import attention_weights
from nlpstack.data.batch import IGNORE_INDEX, Batch
from nlpstack.model import BERT, TransformerConfig
from nlpstack.model.heads import HEADS
from nlpstack.tasks.masked_lm import masked_loss

PUBLISHED = TransformerConfig(
    vocab_size=60,
    max_seq_len=16,
    dim=32,
    n_layers=2,
    n_heads=4,
    causal=False,
    pre_norm=False,
    norm_eps=1e-12,
    n_segments=2,
)
MODERN = replace(
    PUBLISHED,
    pre_norm=True,
    positions="rotary",
    activation="swiglu",
    bias=False,
    norm="rmsnorm",
    n_segments=0,
    tied=False,
)
SHAPES = {"published": PUBLISHED, "modern": MODERN}


def tokens(n_rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 60, (n_rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SHAPES)
def test_a_fresh_bert_is_a_function_of_its_seed_and_sets_every_weight(name: str) -> None:
    first, second, other = (BERT.create(SHAPES[name], seed=seed) for seed in (3, 3, 4))
    for (key, mine), theirs in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), key
        assert torch.isfinite(mine).all(), key
    assert not torch.equal(first.unembedding, other.unembedding)


@pytest.mark.parametrize("name", SHAPES)
def test_fresh_weights_guess_evenly(name: str) -> None:
    model = BERT.create(SHAPES[name], seed=0).eval()
    row = tokens(64, 16)
    batch = Batch(
        tokens=row,
        labels={"mlm": row.flatten()[:500], "nsp": torch.arange(64) % 2},
        segments=torch.zeros_like(row),
        places=torch.arange(500),
        n_targets={"mlm": 500, "nsp": 64},
    )
    sums = masked_loss(model, batch, chunk=100)
    assert sums["mlm"].item() / 500 == pytest.approx(math.log(60), abs=0.1)
    assert sums["nsp"].item() / 64 == pytest.approx(math.log(2), abs=0.05)


@pytest.mark.parametrize("name", SHAPES)
def test_a_token_sees_both_sides_and_no_padding(name: str) -> None:
    model = BERT.create(SHAPES[name], seed=1).eval()
    row = tokens(1, 10)
    plain = model(row)
    changed = row.clone()
    changed[0, 9] = (row[0, 9] + 1) % 60
    assert not torch.allclose(model(changed)[0, 0], plain[0, 0])
    for fill in (0, 7):
        padded = torch.cat((row, torch.full((1, 6), fill)), dim=1)
        mask = torch.arange(16)[None] < 10
        torch.testing.assert_close(model(padded, mask=mask)[:, :10], plain, rtol=1e-5, atol=1e-5)


def test_segments_and_positions_tell_equal_tokens_apart() -> None:
    model = BERT.create(PUBLISHED, seed=2).eval()
    row = torch.full((1, 6), 5)
    plain = model(row)
    assert not torch.allclose(plain[0, 1], plain[0, 2])
    assert not torch.allclose(model(row, segments=torch.tensor([[0, 0, 0, 1, 1, 1]])), plain)
    torch.testing.assert_close(model(row, segments=torch.zeros_like(row)), plain)


def test_an_offset_takes_the_positions_further_down_the_table() -> None:
    plain, shifted = (BERT.create(replace(PUBLISHED, position_offset=n), seed=5).eval() for n in (0, 3))
    state = plain.state_dict()
    table = state.pop("transformer.positions.weight")
    state["transformer.positions.weight"] = torch.cat((torch.full((3, 32), 9.0), table))
    shifted.load_state_dict(state)
    row = tokens(2, 16)
    assert torch.equal(plain(row), shifted(row))


@pytest.mark.parametrize("name", SHAPES)
def test_hidden_states_of_a_layer_are_those_of_a_model_that_ends_there(name: str) -> None:
    model = BERT.create(SHAPES[name], seed=1).eval()
    row = tokens(2, 9)
    below = BERT(replace(SHAPES[name], n_layers=1), heads=())
    below.load_state_dict({key: value for key, value in model.state_dict().items() if key in below.state_dict()})
    norm = below.transformer.norm if SHAPES[name].pre_norm else lambda x: x
    torch.testing.assert_close(norm(model.transformer(row, n_layers=1)), below.eval()(row))
    assert torch.equal(model.transformer(row, n_layers=2), model(row))
    assert not torch.allclose(model.transformer(row, n_layers=0), model.transformer(row, n_layers=1))


def test_only_the_hidden_places_are_projected_and_the_others_have_no_say() -> None:
    model = BERT.create(PUBLISHED, seed=1).eval()
    row = tokens(3, 16)
    mask = torch.arange(16)[None] < torch.tensor([[16], [9], [4]])
    places, labels = torch.tensor([1, 17, 33, 0]), torch.tensor([7, 8, 9, IGNORE_INDEX])
    batch = Batch(tokens=row, labels={"mlm": labels, "nsp": torch.tensor([0, 1, 1])}, mask=mask, places=places)
    found = masked_loss(model, batch, chunk=2)
    hidden = model(row, mask=mask)
    wanted = F.cross_entropy(model.mlm_logits(hidden)[torch.arange(3), 1], labels[:3], reduction="sum")
    torch.testing.assert_close(found["mlm"], wanted)
    nsp = F.cross_entropy(model.nsp_logits(hidden), torch.tensor([0, 1, 1]), reduction="sum")
    torch.testing.assert_close(found["nsp"], nsp)


def test_heads_are_there_as_asked() -> None:
    for heads in ((), ("mlm",), ("pooler",), ("mlm", "pooler"), HEADS):
        model = BERT.create(PUBLISHED, seed=0, heads=heads)
        assert model.heads == heads
        named = {name.partition(".")[0].removesuffix("_head") for name in model.state_dict()} - {"transformer"}
        assert named == set(heads)
    with pytest.raises(AssertionError):
        BERT(PUBLISHED, heads=("nsp",))


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 0), (8, 4), (2, 0)])
def test_each_head_of_a_fresh_encoders_first_block_looks_at_a_neighbour(n_heads: int, n_kv_heads: int) -> None:
    shape = replace(PUBLISHED, dim=64, n_heads=n_heads, n_kv_heads=n_kv_heads, max_seq_len=48, n_segments=0)
    model = BERT.create(shape, seed=3).eval()
    weights = attention_weights(model.transformer, tokens(1, 48)[0])  # (L, H, T, T)
    for head, distance in zip(range(n_heads), (-1, 1, -2, 2, -3, 3, -4, 4), strict=False):
        by_distance = torch.stack([weights[0, head].diagonal(offset).mean() for offset in range(-8, 9)])
        assert int(by_distance.argmax()) - 8 == distance
        assert by_distance.max() > 0.3
    assert weights[1].max() < 0.1, "the other blocks begin as ever"


def test_places_and_tokens_begin_in_parts_of_the_width_of_their_own() -> None:
    model = BERT.create(replace(PUBLISHED, dim=64), seed=3)
    assert not model.transformer.tokens.weight[:, -16:].any()
    assert not model.transformer.positions.weight[:, :-16].any()
    assert model.transformer.tokens.weight[:, :-16].std().item() == pytest.approx(0.06, rel=0.05)
    assert model.transformer.positions.weight[:, -16:].std().item() == pytest.approx(0.06, rel=0.2)


def pairs(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [CLS] 15 tokens [SEP] 15 tokens [SEP], their segments, and which have 6 tokens in both texts."""
    draw = torch.Generator().manual_seed(5)
    rows = torch.stack([torch.randperm(500, generator=draw)[:30] + 5 for _ in range(n)])
    shared = torch.arange(n) % 2 == 1
    rows[shared, 15:21] = rows[shared, 4:10]
    mark = torch.full((n, 1), 2)
    rows = torch.cat((mark, rows[:, :15], mark + 1, rows[:, 15:], mark + 1), dim=1)
    return rows, (torch.arange(33) > 16).long().expand(n, -1), shared


@pytest.mark.parametrize(("heads", "least", "most"), [(["mlm", "pooler", "nsp"], 0.9, 1.0), (["mlm"], 0.0, 0.65)])
def test_an_encoder_of_pairs_begins_by_seeing_what_both_texts_have(heads: list[str], least: float, most: float) -> None:
    shape = replace(PUBLISHED, vocab_size=505, max_seq_len=33, dim=64)
    rows, segments, shared = pairs(1200)
    with torch.no_grad():
        state = BERT.create(shape, seed=2, heads=heads).eval().transformer(rows, segments=segments)[:, 0]
    features = torch.cat((state, torch.ones(len(state), 1)), dim=1).double()
    fitted = torch.linalg.lstsq(features[:800], shared[:800, None].double()).solution
    accuracy = (((features[800:] @ fitted)[:, 0] > 0.5) == shared[800:]).double().mean().item()
    assert least <= accuracy <= most
