"""From text to a model folder, through the library call."""

import json
import math
import tomllib
from dataclasses import replace

import pytest
import torch

import nlpstack
from nlpstack.errors import CheckpointError, ConfigError, ModelError
from nlpstack.job import RunOptions
from nlpstack.pretrain import pretrain
from tests.tiny_recipe import TINY, tiny_text


class Listener:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, done: int, total: int, text: str) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished tiny run: (result, folder, what it said)."""
    folder = tmp_path_factory.mktemp("pretrain")
    listener = Listener()
    options = RunOptions(flags={"data.paths": [str(tiny_text(folder))]})
    result = pretrain("gpt", TINY, out=folder / "run", options=options, reporter=listener)
    return result, folder, listener.lines


def test_a_run_leaves_what_the_design_lists(finished):
    result, folder, _ = finished
    run = folder / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.toml", "model", "checkpoints", "metrics.jsonl", "results.json", "loss.png", ".lock",
    }  # fmt: skip
    assert result.steps == 20
    assert result.tokens == 20 * 8 * 32
    assert result.parameters == sum(p.numel() for p in nlpstack.load_model(run).parameters())
    results = json.loads((run / "results.json").read_text())["results"]
    assert {"model", "task", "data", "split", "metrics"} <= results[0].keys()
    loss = results[0]["metrics"]["loss"]
    assert loss["low"] <= loss["value"] <= loss["high"]
    assert math.exp(loss["value"]) == pytest.approx(results[0]["metrics"]["perplexity"]["value"])


def test_the_resolved_config_says_where_each_value_came_from(finished):
    _, folder, _ = finished
    record = tomllib.loads((folder / "run" / "config.toml").read_text())
    assert record["model"]["dim"] == 32
    assert record["origin"]["model.dim"] == "--set"
    assert record["origin"]["optim.beta2"] == "pretrain/gpt.toml"
    assert record["origin"]["data.paths"] == "flag"
    assert "model.causal" not in record["origin"], "a default has no origin"
    assert record["model"]["causal"] is True, "but is written"
    assert record["choices"]["steps"] == 20
    assert record["choices"]["dtype"] == "fp32"
    assert set(record["hashes"]) == {"tokenizer", "data_train", "data_val"}
    assert record["versions"]["torch"] == torch.__version__


def test_the_first_loss_is_that_of_fresh_weights_and_training_lowers_it(finished):
    _, folder, lines = finished
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[0] == pytest.approx(math.log(500), abs=0.3)
    assert losses[-1] < losses[0] - 0.3
    assert not [line for line in lines if "warning" in line]
    assert {"lr", "grad_norm", "tokens_per_second", "utilisation", "memory_bytes"} <= records[0].keys()


def test_samples_go_on_from_text_of_the_validation_part(finished):
    _, folder, _ = finished
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    samples = [record["samples"] for record in records if "samples" in record]
    assert len(samples) == 2
    text = (folder / "text.txt").read_text()
    for sample in samples[0]:
        assert sample["prompt"] in text[int(len(text) * 0.9) :]


def test_what_is_written_opens_in_transformers_with_the_same_logits_and_ids(finished):
    transformers = pytest.importorskip("transformers")
    _, folder, _ = finished
    path = folder / "run" / "model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    ours = nlpstack.load_model(folder / "run")
    text = "First Citizen:\nWe are accounted poor citizens,"
    ids = ours.tokenizer.encode(text)
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text
    with torch.no_grad():
        tokens = torch.tensor([ids[:32]])
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


def test_two_runs_of_one_recipe_are_bit_equal(finished):
    result, folder, _ = finished
    options = RunOptions(flags={"data.paths": [str(folder / "text.txt")]})
    again = pretrain("gpt", TINY, out=folder / "again", options=options)
    assert again.weights == result.weights
    assert again.val == result.val


def test_a_finished_run_says_so_and_a_changed_value_is_refused_by_name(finished):
    result, folder, _ = finished
    options = RunOptions(flags={"data.paths": [str(folder / "text.txt")]})
    done = pretrain("gpt", TINY, out=folder / "run", resume=True, options=options)
    assert done == replace(result, finished_before=True)
    with pytest.raises(CheckpointError, match=r"optim\.lr: then 0\.002, now 0\.1"):
        pretrain("gpt", [*TINY, "optim.lr=0.1"], out=folder / "run", resume=True, options=options)
    assert pretrain("gpt", [*TINY, "train.log_every=7"], out=folder / "run", resume=True, options=options) == done


def test_more_steps_are_allowed_under_a_constant_schedule_only(finished):
    _, folder, _ = finished
    options = RunOptions(flags={"data.paths": [str(folder / "text.txt")]})
    with pytest.raises(CheckpointError, match=r"train\.steps: then 20, now 30"):
        pretrain("gpt", [*TINY, "train.steps=30"], out=folder / "run", resume=True, options=options)
    constant = [*TINY, "optim.schedule=constant"]
    whole = pretrain("gpt", [*constant, "train.steps=30"], out=folder / "whole", options=options)
    pretrain("gpt", constant, out=folder / "longer", options=options)
    longer = pretrain("gpt", [*constant, "train.steps=30"], out=folder / "longer", resume=True, options=options)
    assert longer.steps == 30
    assert longer.weights == whole.weights


def test_other_data_behind_the_same_name_stops_a_resume(finished, tmp_path):
    text = tiny_text(tmp_path)
    options = RunOptions(flags={"data.paths": [str(text)]})
    pretrain("gpt", [*TINY, "optim.schedule=constant"], out=tmp_path / "run", options=options)
    text.write_text(text.read_text() + "more\n")
    with pytest.raises(CheckpointError, match="other contents than before"):
        pretrain(
            "gpt",
            [*TINY, "optim.schedule=constant", "train.steps=25"],
            out=tmp_path / "run",
            resume=True,
            options=options,
        )


def test_training_goes_on_from_a_model_with_its_tokenizer(finished, tmp_path):
    _, folder, _ = finished
    start = nlpstack.load_model(folder / "run")
    other = tmp_path / "other.txt"
    other.write_text((folder / "text.txt").read_text()[::-1])
    options = RunOptions(flags={"data.paths": [str(other)]}, model=folder / "run")
    result = pretrain("gpt", [*TINY, "train.steps=5"], out=tmp_path / "more", options=options)
    model = nlpstack.load_model(tmp_path / "more")
    assert result.steps == 5
    assert model.tokenizer.hash == start.tokenizer.hash
    assert model.config == start.config
    assert tomllib.loads((tmp_path / "more" / "config.toml").read_text())["model"]["vocab_size"] == 500
    assert not torch.equal(model.unembedding, start.unembedding)


def test_another_shape_than_the_starting_models_is_refused(finished, tmp_path):
    _, folder, _ = finished
    options = RunOptions(flags={"data.paths": [str(folder / "text.txt")]}, model=folder / "run")
    with pytest.raises(ConfigError, match=r"--set: model\.dim=64, but --model .*run has 32"):
        pretrain("gpt", [*TINY, "model.dim=64"], out=tmp_path / "x", options=options)
    assert not (tmp_path / "x").exists()


def test_inexact_without_resume_is_refused(finished, tmp_path):
    _, folder, _ = finished
    options = RunOptions(flags={"data.paths": [str(folder / "text.txt")]}, inexact=True)
    with pytest.raises(ConfigError, match="--inexact goes with --resume"):
        pretrain("gpt", TINY, out=tmp_path / "x", options=options)


def test_a_tokenizer_that_is_not_the_models_is_refused(finished, tmp_path):
    _, folder, _ = finished
    options = RunOptions(flags={"data.paths": [str(folder / "text.txt")]})
    pretrain("gpt", [*TINY, "tokenizer.vocab_size=450", "train.steps=1"], out=tmp_path / "b", options=options)
    with pytest.raises(ModelError, match="not the tokenizer of the model"):
        pretrain(
            "gpt", TINY, out=tmp_path / "c",
            options=replace(options, model=folder / "run", tokenizer=tmp_path / "b"),
        )  # fmt: skip


def test_an_arch_that_is_not_the_recipes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--arch bert: the recipe 'gpt' is of arch gpt"):
        pretrain("gpt", TINY, arch="bert", out=tmp_path / "x")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_activation_checkpointing_gives_the_same_weights(finished, tmp_path, dtype):
    _, folder, _ = finished
    options = RunOptions(flags={"data.paths": [str(folder / "text.txt")]})
    values = [*TINY, f"train.dtype={dtype}", "train.steps=4"]
    plain = pretrain("gpt", values, out=tmp_path / "plain", options=options)
    saving = pretrain("gpt", [*values, "train.activation_checkpointing=true"], out=tmp_path / "saving", options=options)
    assert plain.weights == saving.weights


def test_the_global_state_is_left_as_it_was(finished, tmp_path):
    _, folder, _ = finished
    threads = torch.get_num_threads()
    options = RunOptions(flags={"data.paths": [str(folder / "text.txt")], "train.threads": threads + 1})
    pretrain("gpt", [*TINY, "train.steps=1"], out=tmp_path / "run", options=options)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
