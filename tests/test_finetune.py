"""From a pretrained model and labelled files to a run that is scored, resumed, predicted with and merged."""

import json
import tomllib
from pathlib import Path

import pytest
import torch

from nlpstack.errors import CheckpointError
from nlpstack.hub import load_model, save_model
from nlpstack.model import BERT
from nlpstack.model.lora import adapters
from tests.tiny import Outcome, nlpstack
from tests.tiny_labelled import TAGGED, finetune

CASES = [
    ("ner", "bert", "ner", "entity_f1"),
    ("ner-lora", "bert", "ner", "entity_f1"),
    ("classification", "bert", "classification", "accuracy"),
    ("classification-lora", "bert", "classification", "f1_macro"),
    ("pair", "bert", "pair", "spearman"),
    ("generation", "gpt", "generation", "loss"),
    ("generation-lora", "gpt", "generation", "perplexity"),
]


@pytest.mark.parametrize(("recipe", "base", "kind", "metric"), CASES)
def test_every_recipe_trains_is_scored_and_predicts(recipe, base, kind, metric, bases, data, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = finetune(recipe, run, bases[base], data[kind])
    made = outcome.json
    assert metric in made["val"]
    assert f"starts from {bases[base]}" in outcome.err
    assert "padding" in outcome.err
    model = load_model(run)
    assert bool(adapters(model)) == recipe.endswith("-lora")
    assert (run / "model" / "adapter_config.json").exists() == recipe.endswith("-lora")
    dtype = tomllib.loads((run / "config.toml").read_text())["choices"]["dtype"]  # bf16 where that is fast
    value = nlpstack("eval", run, "--split", "val", "--json", "--dtype", dtype).json["results"][0]["metrics"][metric]
    wanted = made["val"][metric]  # in bf16 all guesses of a tiny model may be one, whose correlation is undefined
    assert value["value"] == (None if wanted is None else pytest.approx(wanted, rel=1e-5))
    source = next(data[kind].glob("train.*"))
    lines = [json.loads(line) for line in nlpstack("predict", "--model", run, source).out.splitlines()]
    assert set(lines[0]) == {"ner": {"tags", "entities"}, "generation": {"text"}}.get(kind, set(lines[0]))
    assert len(lines) == {"ner": 24, "classification": 24, "pair": 16, "generation": 12}[kind]


def test_the_best_validation_is_kept_and_frozen_weights_are_proved_unchanged(bases, data, tmp_path: Path) -> None:
    outcome = finetune("ner-lora", tmp_path / "run", bases["bert"], data["ner"])
    assert "unchanged to the bit" in outcome.err
    assert "LoRA: rank 8 on 12 layers" in outcome.err
    assert "heads: fresh classifier; left behind mlm, pooler, nsp" in outcome.err
    assert "baseline most_frequent_tag: entity_f1" in outcome.err
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(record["val"]["entity_f1"] for record in records if "val" in record)
    assert outcome.json["val"]["entity_f1"] == pytest.approx(best)
    base, model = load_model(bases["bert"]).state_dict(), load_model(tmp_path / "run").state_dict()
    shared = [
        name for name in base if name.replace("_proj.", "_proj.base.") in model and name.startswith("transformer")
    ]
    assert len(shared) > 30
    assert all(torch.equal(base[name], model[name.replace("_proj.", "_proj.base.")]) for name in shared)


@pytest.mark.parametrize(("known", "guessed"), [(True, 1.0), (False, 0.0)])
def test_a_model_that_is_no_better_than_guessing_is_said_to_be_so(bases, data, known, guessed, tmp_path: Path) -> None:
    if known:  # each name of the validation part is one of training's: remembering tells them all
        (data["ner"] / "dev.conll").write_text(TAGGED["train"])
    outcome = finetune("ner-lora", tmp_path / "run", bases["bert"], data["ner"], **{"train.epochs": 1})
    guess = json.loads((tmp_path / "run" / "results.json").read_text())["results"][0]["baselines"]["most_frequent_tag"]
    assert guess["entity_f1"]["value"] == guessed
    for metric, value in ((name, score["value"]) for name, score in guess.items()):
        own = outcome.json["val"][metric]
        warning = f"warning: the model's {metric}, {own:.4f}, is no better than that of the guess most_frequent_tag"
        assert (warning in outcome.err) == (own <= value)
    assert known == ("warning: the model's entity_f1" in outcome.err)


def test_how_a_model_is_read_can_be_chosen_for_an_evaluation(bases, data, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finetune("ner-lora", run, bases["bert"], data["ner"], **{"train.epochs": 1})

    def read(*words: str) -> Outcome:
        return nlpstack("eval", run, "--json", *(part for word in words for part in ("--set", word)))

    for words, decoding in ((), "viterbi"), (("task.constrained=false",), "argmax"):
        scores = read(*words).json["results"][0]["metrics"]
        assert scores["entity_f1"]["signature"].startswith(f"decoding:{decoding}|")
    for word, fault in (
        ("task.threshold=0.3", f"--set task.threshold: not a choice of how {run} is scored; of those it has"),
        ("task.label_smoothing=0.1", "--set task.label_smoothing: not a choice of how"),
        ("task.name=ner", "--set task.name: not a choice of how"),
        ("task.constrained=7", "task.constrained=7"),
        ("task.constraint=true", "did you mean 'task.constrained'?"),
    ):
        refused = read(word)
        assert (refused.code, refused.out) == (2, "")
        assert fault in refused.err


def test_what_is_cut_is_said_wherever_a_text_is_read(bases, data, tmp_path: Path) -> None:
    run, source = tmp_path / "run", tmp_path / "long.tsv"
    source.write_text("text\tlabel\n" + "king " * 60 + "\tgood\nthe sea\tbad\n")
    finetune("classification", run, bases["bert"], data["classification"], **{"task.truncate": "false"})
    said = "1 texts are longer than 48 tokens and were cut"
    predicted = nlpstack("predict", "--model", run, source, "--truncate")
    assert (predicted.code, len(predicted.out.splitlines())) == (0, 2)
    assert said in predicted.err
    scored = nlpstack("eval", run, "--data", source, "--set", "task.truncate=true", "--json")
    assert said in scored.err
    assert scored.json["results"][0]["metrics"]["accuracy"]["n"] == 2
    for words in (["predict", "--model", run, source], ["eval", run, "--data", source]):
        refused = nlpstack(*words)
        assert (refused.code, refused.out) == (2, "")
        assert "long.tsv:2: has " in refused.err


def test_a_stopped_run_goes_on_bit_for_bit_and_only_on_the_same_model(bases, data, tmp_path: Path) -> None:
    whole = finetune("ner-lora", tmp_path / "whole", bases["bert"], data["ner"]).json
    from nlpstack.finetune import finetune as call
    from nlpstack.job import RunOptions
    from nlpstack.signals import Stopped, StopSignal

    stop = StopSignal()
    stop.signum = 2
    values = json.loads(
        json.dumps(
            {
                "train.epochs": 2,
                "train.batch_size": 4,
                "train.val_every": 3,
                "train.checkpoint_every": 2,
                "train.log_every": 1,
                "eval.resamples": 20,
                "train.sample_tokens": 4,
                "train.device": "cpu",
            }
        )
    )
    flags = {"data.paths": [str(data["ner"])]}
    options = RunOptions(model=bases["bert"], flags=flags, stop=stop)
    overrides = [f"{key}={value}" for key, value in values.items()]
    with pytest.raises(Stopped):
        call("ner-lora", overrides, out=tmp_path / "part", options=options)
    resumed = call("ner-lora", overrides, out=tmp_path / "part", resume=True, options=RunOptions(flags=flags))
    assert resumed.weights == whole["weights"]
    other = tmp_path / "other"
    save_model(
        BERT.create(load_model(bases["bert"]).config, seed=5, tokenizer=load_model(bases["bert"]).tokenizer), other
    )
    (tmp_path / "part" / "results.json").unlink()
    with pytest.raises(CheckpointError, match="other contents than before: model"):
        call("ner-lora", overrides, out=tmp_path / "part", resume=True, options=RunOptions(flags=flags, model=other))


def test_predictions_go_on_where_a_file_stops(bases, data, tmp_path: Path) -> None:
    finetune("ner", tmp_path / "run", bases["bert"], data["ner"]).json  # noqa: B018
    source, out = tmp_path / "lines.txt", tmp_path / "out.jsonl"
    source.write_text("".join(f"line {number} of Rome.\n" for number in range(7)))
    whole = nlpstack("predict", "--model", tmp_path / "run", source).out
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:20])
    assert (
        "exists; --resume goes on behind its lines"
        in nlpstack("predict", "--model", tmp_path / "run", source, "--out", out).fault
    )
    assert nlpstack("predict", "--model", tmp_path / "run", source, "--out", out, "--resume").code == 0
    assert out.read_text() == whole
    first = json.loads(lines[0])
    assert len(first["tags"]) == 5
    assert all(one["text"] == "line 0 of Rome."[one["start"] : one["end"]] for one in first["entities"])


def test_merging_gives_one_plain_model(bases, data, tmp_path: Path) -> None:
    finetune("ner-lora", tmp_path / "run", bases["bert"], data["ner"]).json  # noqa: B018
    merged = nlpstack("merge", tmp_path / "run", "--out", tmp_path / "merged", "--json").json
    assert merged["layers"] == 12
    assert merged["difference"] < 1e-4
    one, other = (
        nlpstack("predict", "--model", place, data["ner"] / "test.conll")
        for place in (tmp_path / "run", tmp_path / "merged")
    )
    assert [json.loads(line)["tags"] for line in one.out.splitlines()] == [
        json.loads(line)["tags"] for line in other.out.splitlines()
    ]
    assert "has no adapter" in nlpstack("merge", tmp_path / "merged", "--out", tmp_path / "again").fault
    assert "differ by" in nlpstack("merge", tmp_path / "run", "--out", tmp_path / "strict", "--tolerance", "0").fault
    assert not (tmp_path / "strict").exists()


def test_a_pooler_can_train_beside_adapters_and_is_part_of_the_adapter(bases, data, tmp_path: Path) -> None:
    finetune("classification", tmp_path / "first", bases["bert"], data["classification"])
    base = tmp_path / "first"  # whose pooler is no longer fresh
    before = load_model(base).state_dict()["pooler.dense.weight"]
    words = ("--set", "lora.rank=2")
    kept = finetune("classification-lora", tmp_path / "kept", base, data["classification"], *words)
    trained = finetune(
        "classification-lora", tmp_path / "own", base, data["classification"], *words, "--set", "lora.pooler=true"
    )
    assert (kept.code, trained.code) == (0, 0), trained.err
    for name, is_trained in (("kept", False), ("own", True)):
        settings = json.loads((tmp_path / name / "model" / "adapter_config.json").read_text())
        assert ("pooler" in (settings["modules_to_save"] or [])) == is_trained
        assert torch.equal(load_model(tmp_path / name).state_dict()["pooler.dense.weight"], before) != is_trained
    fault = finetune("ner-lora", tmp_path / "ner", bases["bert"], data["ner"], "--set", "lora.pooler=true").fault
    assert "lora.pooler: the task ner has no pooler; leave it out" in fault


def test_the_newest_pretraining_run_of_the_right_arch_is_taken(bases, data, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = nlpstack("finetune", "--task", "ner", "--data", data["ner"])
    assert "no model to start from" in missing.fault
    assert "nlpstack pretrain --arch bert" in missing.fault
    tiny = ["model.dim=32", "model.n_layers=1", "model.n_heads=2", "model.max_seq_len=32", "tokenizer.vocab_size=400"]
    tiny += ["train.steps=2", "train.batch_size=2", "eval.pseudo_tokens=20", "eval.max_tokens=500", "eval.resamples=10"]
    settings = [word for value in tiny for word in ("--set", value)]
    assert nlpstack("pretrain", "--arch", "bert", *settings).code == 0
    words = ["--set", "train.epochs=1", "--set", "train.batch_size=8", "--set", "eval.resamples=10"]
    outcome = nlpstack("finetune", "--task", "ner", "--lora", "--data", data["ner"], *words)
    assert "starts from runs/bert" in outcome.err
    assert outcome.code == 0
    assert {one["task"] for one in nlpstack("eval", "--json", "--set", "eval.pseudo_tokens=20").json["results"]} == {
        "masked_lm",
        "ner",
    }


@pytest.mark.parametrize(
    ("recipe", "base", "kind", "words", "message"),
    [
        ("generation", "bert", "generation", [], "a BERT, and the task generation takes a GPT"),
        ("ner", "gpt", "ner", [], "a GPT, and the task ner takes a BERT"),
        ("ner", "bert", "ner", ["--task", "classification"], "the recipe 'ner' is of the task ner"),
        ("ner", "bert", "ner", ["--lora"], "--lora goes with --task; a RECIPE says itself"),
        (
            "ner-lora",
            "bert",
            "ner",
            ["--set", 'lora.targets=["query"]'],
            "lora.targets query: no such layer; there are",
        ),
        (
            "ner",
            "bert",
            "ner",
            ["--set", "task.threshold=0.3"],
            "task.threshold: classification; the task ner has no such choice",
        ),
        (
            "ner",
            "bert",
            "ner",
            ["--set", 'train.freeze=["bert."]'],
            "train.freeze: no weight's name begins with 'bert.'",
        ),
        ("ner", "bert", "generation", [], "'tokens' must be a list of texts"),
    ],
)
def test_what_cannot_be_meant_is_one_line(recipe, base, kind, words, message, bases, data, tmp_path: Path) -> None:
    assert message in finetune(recipe, tmp_path / "run", bases[base], data[kind], *words).fault
    assert not (tmp_path / "run").exists()


def test_freezing_and_layer_decay(bases, data, tmp_path: Path) -> None:
    frozen = {"train.freeze": '["transformer.tokens", "transformer.blocks.0"]', "optim.layer_decay": 0.5}
    outcome = finetune("classification", tmp_path / "run", bases["bert"], data["classification"], **frozen)
    assert outcome.code == 0
    base, model = load_model(bases["bert"]).state_dict(), load_model(tmp_path / "run").state_dict()
    moved = {name for name in base if name in model and not torch.equal(base[name], model[name])}
    assert not any(name.startswith(("transformer.tokens", "transformer.blocks.0.")) for name in moved)
    assert any(name.startswith("transformer.blocks.1.") for name in moved)


@pytest.mark.parametrize("recipe", ["ner", "classification"])
def test_a_dry_run_measures_a_model_with_labels_and_writes_nothing(recipe, bases, data, tmp_path: Path) -> None:
    outcome = finetune(recipe, tmp_path / "run", bases["bert"], data[recipe], "--dry-run")
    assert outcome.code == 0
    assert "memory: about" in outcome.err
    assert "step 1: loss" in outcome.err
    assert not (tmp_path / "run").exists()


def test_pretraining_goes_on_from_a_classifier_but_not_from_an_adapter(bases, data, tmp_path: Path) -> None:
    words = ["--data", "sample:abstracts", "--set", "train.steps=1", "--set", "train.batch_size=2"]
    words += ["--set", "eval.pseudo_tokens=20", "--set", "eval.max_tokens=500", "--set", "eval.resamples=10"]
    finetune("classification", tmp_path / "whole", bases["bert"], data["classification"]).json  # noqa: B018
    outcome = nlpstack("pretrain", "bert", "--model", tmp_path / "whole", "--out", tmp_path / "on", *words)
    assert outcome.code == 0, outcome.err
    assert load_model(tmp_path / "on").heads == ("mlm", "pooler", "nsp")
    finetune("ner-lora", tmp_path / "lora", bases["bert"], data["ner"]).json  # noqa: B018
    fault = nlpstack("pretrain", "bert", "--model", tmp_path / "lora", "--out", tmp_path / "no", *words).fault
    assert "an adapter; merge it first (nlpstack merge" in fault
