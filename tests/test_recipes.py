"""Every recipe loads and builds; small ones take two steps."""

import math

import pytest

from nlpstack.errors import DataError
from nlpstack.job import RunOptions
from nlpstack.model import BERT, GPT
from nlpstack.model.transformer import on_meta
from nlpstack.pretrain import pretrain
from nlpstack.recipes import list_recipes
from nlpstack.train.run import load_run
from tests.tiny_recipe import tiny_text

RECIPES = [recipe.name for recipe in list_recipes("pretrain")]


def test_the_promised_recipes_are_there():
    assert {"gpt", "shakespeare-char", "shakespeare-char-cpu", "gpt2-124m", "llama-mini"} <= set(RECIPES)
    assert {"bert", "bert-base", "bert-modern", "roberta", "wikitext2-bert"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_builds_without_memory(name):
    config = load_run(name, "pretrain", {}, ["model.vocab_size=50257"]).config
    with on_meta():
        model = GPT(config.model) if config.model.causal else BERT(config.model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert config.train.sequences(config.model.max_seq_len) >= 1


def test_gpt2_124m_has_gpt2s_parameters():
    config = load_run("gpt2-124m", "pretrain", {}, ["model.vocab_size=50257"]).config
    with on_meta():
        model = GPT(config.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808  # as published


@pytest.mark.parametrize(
    ("name", "vocab_size", "published"), [("bert-base", 30522, 110_106_428), ("roberta", 50265, 124_697_433 - 768)]
)
def test_published_shapes_have_as_many_parameters_as_published(name, vocab_size, published):
    # RoBERTa leaves two rows of its positions unused, as its pad id is 1; ours is 0, and leaves one.
    config = load_run(name, "pretrain", {}, [f"model.vocab_size={vocab_size}"]).config
    with on_meta():
        model = BERT(config.model, heads=("mlm", "pooler", "nsp") if config.task.nsp else ("mlm",))
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_nanogpts_runs_have_its_values():
    gpu = load_run("shakespeare-char", "pretrain", {}, []).config
    cpu = load_run("shakespeare-char-cpu", "pretrain", {}, []).config

    def shape(config):
        return (
            config.model.n_layers,
            config.model.dim,
            config.model.max_seq_len,
            config.train.batch_size,
            config.train.steps,
        )

    assert shape(gpu) == (6, 384, 256, 64, 5000)
    assert shape(cpu) == (4, 128, 64, 12, 2000)
    assert (gpu.model.dropout, cpu.model.dropout) == (0.2, 0.0)
    assert gpu.optim.lr == 1e-3
    assert cpu.optim.lr * cpu.optim.min_lr == pytest.approx(gpu.optim.lr * gpu.optim.min_lr)


@pytest.mark.parametrize("name", ["gpt", "shakespeare-char-cpu", "llama-mini"])
def test_a_small_recipe_takes_two_steps(name, tmp_path):
    values = [
        "train.steps=2",
        "train.batch_size=2",
        "eval.max_tokens=500",
        "eval.resamples=10",
        "train.sample_tokens=3",
    ]
    if name != "shakespeare-char-cpu":
        values.append("tokenizer.vocab_size=500")
    options = RunOptions(flags={"data.paths": [str(tiny_text(tmp_path))]})
    result = pretrain(name, values, out=tmp_path / "run", options=options)
    assert result.steps == 2
    assert math.isfinite(result.val["bits_per_byte"])


def test_a_recipe_without_bundled_data_says_what_it_wants(tmp_path):
    with pytest.raises(DataError, match="--data"):
        pretrain("gpt2-124m", out=tmp_path / "run")
