"""The options of each optimizer at the command line: what it has, what it lacks, what is said and what is saved."""

import tomllib
from pathlib import Path

import pytest

from nlpstack.config import resolve, to_toml
from nlpstack.errors import ConfigError
from nlpstack.train.optim import OPTIONS
from nlpstack.train.run import SECTIONS, load_run
from tests.tiny import nlpstack, pretrain, write_text

MINIMAL = "[train]\nsteps = 10\nbatch_size = 4\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"), size=12_000)


def optim(folder: Path, recipe: str, *overrides: str, base: str | None = None):
    """The [optim] section of a recipe with overrides, and what was said of it."""
    if base is not None:
        (folder / "base.toml").write_text(MINIMAL + base)
    path = folder / "mine.toml"
    path.write_text((MINIMAL if base is None else 'extends = "base.toml"\n') + recipe)
    found = resolve(path, SECTIONS, {}, overrides)
    return found.sections["optim"], found.notes, found


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["optim.name=adamm"], ["--set: optim.name='adamm'", "did you mean 'adam'?"]),
        (["optim.name=muno"], ["--set: optim.name='muno'", "'sgd', 'adagrad'", "did you mean 'muon'?"]),
        (["optim.name=sgd", "optim.beta1=0.8"], ["--set: optim.beta1=0.8: sgd has no beta1", "momentum, nesterov"]),
        (
            ["optim.momentum=0.8"],
            ["--set: optim.momentum=0.8: adamw has no momentum; its options are lr, weight_decay"],
        ),
        (["optim.name=adagrad", "optim.alpha=0.9"], ["optim.alpha=0.9: adagrad has no alpha"]),
        (["optim.name=rmsprop", "optim.nesterov=true"], ["optim.nesterov=True: rmsprop has no nesterov"]),
        (["optim.name=sgd", "optim.nesterov=true", "optim.momentum=0"], ["nesterov=true goes with momentum above 0"]),
        (["optim.name=muon", "optim.momentum=0"], ["nesterov=true goes with momentum above 0"]),
        (["optim.name=sgd", "optim.momentum=1"], ["--set: optim.momentum=1: input should be less than 1"]),
        (["optim.name=rmsprop", "optim.eps=0"], ["--set: optim.eps=0: input should be greater than 0"]),
        (["optim.name=lbfgs", "optim.clip=1"], ["--set: optim.clip=1: lbfgs has no clip; its options are lr, history"]),
        (["optim.name=lbfgs", "optim.weight_decay=0.1"], ["optim.weight_decay=0.1: lbfgs has no weight_decay"]),
        (["optim.name=lbfgs", "optim.history=0"], ["history=0, max_iter=4", "of at least 1"]),
        (["optim.name=lbfgs", "optim.history=2.5"], ["--set: optim.history=2.5", "integer"]),
        (["optim.name=lbfgs", "optim.lr=0"], ["lr=0.0: lbfgs needs", "lr above 0"]),
        (["optim.name=lbfgs", "model.dropout=0.1"], ["--set: model.dropout=0.1", "lbfgs; use model.dropout=0"]),
        (["optim.name=lbfgs", "train.dtype=bf16"], ["--set: train.dtype=bf16", "lbfgs; use train.dtype=fp32"]),
        (["optim.name=lbfgs", "train.dtype=fp16"], ["--set: train.dtype=fp16", "lbfgs; use train.dtype=fp32"]),
        (["optim.name=lbfgs"], ["optim.name=lbfgs takes all", "sequences at each step, not 4; set train.batch_size="]),
    ],
)
def test_a_bad_optimizer_or_option_is_one_line(text, tmp_path, words, parts):
    command = pretrain(text, tmp_path / "run", model__dropout=0)
    fault = nlpstack(*command, *(part for word in words for part in ("--set", word))).fault
    for part in parts:
        assert part in fault, fault
    assert not (tmp_path / "run").exists()


def test_the_number_that_lbfgs_asks_for_is_the_one_it_takes(text, tmp_path):
    command = pretrain(
        text, tmp_path / "run", "--json", model__dropout=0, optim__name="lbfgs", optim__lr=1, train__steps=2
    )
    number = nlpstack(*command).fault.partition("train.batch_size=")[2].split()[0]
    outcome = nlpstack(*command, "--set", f"train.batch_size={number}", "--set", "train.micro_batch=8")
    assert outcome.json["steps"] == 2
    assert "dtype fp32" in outcome.err, "whatever the machine multiplies fastest"


def test_an_option_of_the_recipe_that_its_own_optimizer_lacks_names_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"mine\.toml: optim\.beta2=0\.9: sgd has no beta2"):
        optim(tmp_path, '[optim]\nname = "sgd"\nbeta2 = 0.9\n')
    with pytest.raises(ConfigError, match=r"mine\.toml: optim\.momentum=0\.9: adamw has no momentum"):
        optim(tmp_path, "[optim]\nmomentum = 0.9\n", base='[optim]\nname = "adamw"\n')


# -- what is left out, and said --------------------------------------------------------------------------------------


def test_options_of_the_recipes_optimizer_are_left_out_for_another_and_said(tmp_path):
    found, notes, resolved = optim(tmp_path, "[optim]\nbeta2 = 0.99\nclip = 0.5\n", "optim.name=sgd")
    name = f"{tmp_path.name}/mine.toml"
    assert notes == [f"optim.beta2=0.99 of {name} left out: sgd has none"]
    assert (found.name, found.beta2, found.clip, found.momentum) == ("sgd", None, 0.5, 0.9)
    assert "optim.beta2" not in resolved.origin
    assert "beta2" not in resolved.values()["optim"]


def test_a_kept_rate_that_was_chosen_for_another_optimizer_is_said(tmp_path):
    found, notes, _ = optim(tmp_path, "[optim]\nlr = 3e-3\n", "optim.name=sgd")
    assert found.lr == 3e-3
    assert notes == [
        f"optim.lr=0.003 of {tmp_path.name}/mine.toml kept, though chosen for adamw; the default of sgd is 0.1"
    ]
    assert optim(tmp_path, "[optim]\nlr = 3e-3\n", "optim.name=muon")[1] == [], "one rate serves both"
    assert optim(tmp_path, "[optim]\nlr = 3e-3\n", "optim.name=sgd", "optim.lr=0.2")[1] == []
    assert optim(tmp_path, '[optim]\nname = "sgd"\nlr = 3e-3\n')[1] == []


def test_the_last_choice_counts_and_only_what_stands_below_it_is_left_out(tmp_path):
    base = '[optim]\nname = "sgd"\nnesterov = true\nmomentum = 0.8\n'
    found, notes, _ = optim(tmp_path, '[optim]\nname = "rmsprop"\nalpha = 0.9\n', base=base)
    assert (found.momentum, found.alpha, found.nesterov) == (0.8, 0.9, None)
    assert [note.split(" of ")[0] for note in notes] == ["optim.momentum=0.8", "optim.nesterov=true"]
    found, notes, _ = optim(tmp_path, '[optim]\nname = "rmsprop"\nalpha = 0.9\n', "optim.name=sgd", base=base)
    assert (found.momentum, found.alpha, found.nesterov) == (0.8, None, True)
    assert any("optim.alpha=0.9" in note and "left out" in note for note in notes)


@pytest.mark.parametrize("value", ["1979-05-27", "inf", "'x'", "[1]"])
def test_a_value_of_no_sense_is_still_refused_by_its_file(tmp_path, value):
    with pytest.raises(ConfigError, match=r"mine\.toml: optim\.lr="):
        optim(tmp_path, f"[optim]\nlr = {value}\n", "optim.name=sgd")


def test_an_optimizer_of_no_sense_below_another_is_no_matter(tmp_path):
    assert optim(tmp_path, "[optim]\nname = [1]\nlr = 1.0\n", "optim.name=sgd")[0].lr == 1.0


@pytest.mark.parametrize("recipe", ["gpt", "shakespeare-char", "llama-mini"])
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "lbfgs"])
def test_every_recipe_takes_every_optimizer(recipe, name):
    assert load_run(recipe, "pretrain", {}, [f"optim.name={name}"]).config.optim.name == name


def test_a_recipes_clipping_and_decay_do_not_keep_lbfgs_away():
    run = load_run("shakespeare-char", "pretrain", {}, ["optim.name=lbfgs", "model.dropout=0"])
    assert (run.config.optim.clip, run.config.optim.weight_decay) == (0.0, 0.0)
    left_out = [note.split(" of ")[0] for note in run.resolved.notes if "left out: lbfgs has none" in note]
    assert left_out == ["optim.beta2=0.99", "optim.clip=1.0", "optim.weight_decay=0.1"]


# -- what is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "muon", "lbfgs"])
def test_the_saved_config_states_the_options_and_the_same_command_resumes(text, tmp_path, name):
    values = {"optim__name": name, "train__steps": 2, "model__dropout": 0, "train__samples": 0}
    if name == "lbfgs":
        values |= {"model__max_seq_len": 128, "train__batch_size": 43}
    command = pretrain(text, tmp_path / "run", **values)
    outcome = nlpstack(*command)
    assert outcome.code == 0, outcome.err
    said = [line for line in outcome.err.splitlines() if "left out" in line]
    assert len(said) == (name != "muon")
    assert all(f"optim.beta2=0.99 of pretrain/gpt.toml left out: {name} has none" in line for line in said)
    saved = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["optim"]
    shared = {
        "name": name,
        "lr": 0.002,
        "schedule": "cosine",
        "warmup": 50.0,
        "min_lr": 0.1,
        "decay_share": 0.2,
        "layer_decay": 1.0,
    }
    own = OPTIONS[name] | shared | ({"beta2": 0.99} if name == "muon" else {})
    assert saved == {"weight_decay": 0.0, "clip": 0.0, **own}
    again = nlpstack(*command, "--resume")
    assert again.code == 0
    assert "already finished after 2 steps" in again.err
    changed = nlpstack(*command, "--resume", "--set", "optim.min_lr=0.2").fault
    assert "(optim.min_lr: then 0.1, now 0.2)" in changed


def test_a_saved_config_is_a_recipe_of_the_same_optimizer(tmp_path):
    for name in OPTIONS:
        first = optim(tmp_path, f'[optim]\nname = "{name}"\n')[2]
        (tmp_path / "config.toml").write_text(to_toml(first.values()))
        again = resolve(tmp_path / "config.toml", SECTIONS, {})
        assert again.sections["optim"] == first.sections["optim"]
        assert again.notes == []
