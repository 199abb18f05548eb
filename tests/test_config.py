"""A recipe, its flags and overrides become typed values with a known origin, or one line that says what is wrong."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.config import Resolved, parse_override, resolve, to_toml
from nlpstack.errors import ConfigError
from nlpstack.train.run import SECTIONS, Run, RunConfig, RunFolder

QUICK = settings(max_examples=40, deadline=None)  # deadlines fail on a busy machine

MINIMAL = "[train]\nsteps = 10\nbatch_size = 4\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def resolved(path: Path, flags: Mapping[str, Any] | None = None, *overrides: str) -> Resolved:
    return resolve(path, SECTIONS, flags or {}, overrides)


def refused(path: Path, *parts: str, flags: Mapping[str, Any] | None = None, overrides: tuple[str, ...] = ()) -> str:
    """Resolving is refused in one line that holds the parts."""
    with pytest.raises(ConfigError) as caught:
        resolved(path, flags, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write(tmp_path / "pretrain", "mine.toml", MINIMAL)


# -- layers ----------------------------------------------------------------------------------------------------------


def test_later_layers_win_and_each_value_knows_who_set_it(tmp_path: Path) -> None:
    values = [f"{key} = 1e-3" for key in ("lr", "eps", "clip", "warmup", "min_lr")]
    folder = tmp_path / "pretrain"
    write(folder, "base.toml", MINIMAL + "[optim]\n" + "\n".join(values[:4]))
    path = write(folder, "mine.toml", 'extends = "base.toml"\n[optim]\neps = 2e-3\nclip = 2e-3\nwarmup = 2e-3\n')
    flags = {"optim.clip": 3e-3, "optim.warmup": 3e-3}
    found = resolved(path, flags, "optim.warmup=4e-3")
    optim = found.sections["optim"]
    assert (optim.min_lr, optim.lr, optim.eps, optim.clip, optim.warmup) == (0.1, 1e-3, 2e-3, 3e-3, 4e-3)
    assert found.origin == {
        "train.steps": "pretrain/base.toml",
        "train.batch_size": "pretrain/base.toml",
        "optim.lr": "pretrain/base.toml",
        "optim.eps": "pretrain/mine.toml",
        "optim.clip": "flag",
        "optim.warmup": "--set",
    }


def test_the_last_of_two_overrides_of_one_key_wins(recipe: Path) -> None:
    assert resolved(recipe, None, "train.steps=5", "train.steps=6").sections["train"].steps == 6


def test_every_shown_value_is_the_one_in_use(recipe: Path) -> None:
    found = resolved(recipe)
    for name, section in found.sections.items():
        assert found.values()[name] == {key: value for key, value in asdict(section).items() if value is not None}
    assert "minutes" not in found.values()["train"]  # TOML has no word for None


def test_extending_two_levels_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.toml", MINIMAL)
    write(tmp_path, "b.toml", 'extends = "a.toml"\n')
    refused(write(tmp_path, "c.toml", 'extends = "b.toml"\n'), "b.toml", "one level is allowed")
    refused(write(tmp_path, "self.toml", 'extends = "self.toml"\n'), "one level is allowed")


@pytest.mark.parametrize("base", ["../a.toml", "sub/a.toml", "..\\a.toml", "", ".", ".."])
def test_extending_a_file_elsewhere_is_refused(tmp_path: Path, base: str) -> None:
    write(tmp_path, "a.toml", MINIMAL)
    path = write(tmp_path, "in/mine.toml", f"extends = '{base}'\n")
    refused(path, "mine.toml", repr(base), "the same folder")


def test_extending_what_is_not_there_names_the_nearest_file(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", MINIMAL)
    refused(write(tmp_path, "mine.toml", "extends = 'bsae.toml'\n"), "'bsae.toml'", "did you mean 'base.toml'?")
    refused(write(tmp_path, "mine.toml", "extends = 3\n"), "extends=3", "same folder")


# -- keys ------------------------------------------------------------------------------------------------------------


def test_an_unknown_section_or_key_is_refused_with_the_nearest_right_one(tmp_path: Path, recipe: Path) -> None:
    path = write(tmp_path, "mine.toml", MINIMAL + "[modle]\ndim = 8\n")
    refused(path, "mine.toml", "unknown section 'modle'", "did you mean 'model'?")
    path = write(tmp_path, "mine.toml", MINIMAL + "[model]\nn_layer = 8\n")
    refused(path, "mine.toml", "unknown key 'model.n_layer'", "did you mean 'model.n_layers'?")
    refused(recipe, "--set", "'optim.learning'", "there are:", "weight_decay", overrides=("optim.learning=1",))
    refused(recipe, "flag", "'train.step'", "'train.steps'", flags={"train.step": 1})
    refused(recipe, "--set", "unknown section 'origin'", overrides=("origin.x=1",))


def test_an_unknown_key_of_the_extended_file_names_that_file(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", MINIMAL + "[model]\ndmi = 8\n")
    refused(write(tmp_path, "mine.toml", "extends = 'base.toml'\n"), "base.toml", "'model.dmi'", "'model.dim'")


def test_a_value_outside_any_section_is_refused(tmp_path: Path) -> None:
    refused(write(tmp_path, "mine.toml", "steps = 3\n" + MINIMAL), "mine.toml", "'steps' stands outside any section")


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "written", "reason"),
    [
        ("train.steps", '"3"', "integer"),
        ("train.steps", "true", "integer"),
        ("train.steps", "3.0", "integer"),
        ("train.steps", "1979-05-27", "integer"),
        ("train.steps", "{a = 1}", "integer"),
        ("optim.lr", '"1e-3"', "number"),
        ("optim.lr", "false", "number"),
        ("optim.lr", "[1.0]", "number"),
        ("optim.lr", "inf", "finite"),
        ("optim.lr", "-inf", "finite"),
        ("optim.lr", "nan", "finite"),
        ("train.deterministic", "1", "boolean"),
        ("train.deterministic", '"yes"', "boolean"),
        ("model.norm", "3", "'layernorm' or 'rmsnorm'"),
        ("data.paths", '"one.txt"', "array"),
        ("data.paths", "[1]", "string"),
        ("data.cache", "07:32:00", "07:32"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path, key: str, written: str, reason: str) -> None:
    section, _, name = key.partition(".")
    tables = {"train": {"steps": "10", "batch_size": "4"}}
    tables.setdefault(section, {})[name] = written
    text = "".join(f"[{table}]\n" + "".join(f"{k} = {v}\n" for k, v in rows.items()) for table, rows in tables.items())
    path = write(tmp_path, "mine.toml", text)
    if written == "07:32:00":  # a time is text where text is wanted
        assert resolved(path).sections["data"].cache == "07:32:00"
    else:
        refused(path, "mine.toml", key, reason)


def test_an_integer_serves_as_a_number_with_a_fraction(recipe: Path) -> None:
    clip = resolved(recipe, None, "optim.clip=2").sections["optim"].clip
    assert clip == 2.0
    assert isinstance(clip, float)


def test_a_misspelt_choice_is_refused_with_the_nearest_one(recipe: Path) -> None:
    refused(recipe, "--set", "train.dtype='bf61'", "did you mean 'bf16'?", overrides=("train.dtype=bf61",))
    refused(recipe, "model.positions='rotray'", "did you mean 'rotary'?", overrides=("model.positions=rotray",))


def test_a_value_of_two_types_is_refused_with_both(recipe: Path) -> None:
    refused(recipe, "train.compile='atuo'", "boolean", "did you mean 'auto'?", overrides=("train.compile=atuo",))
    for written, value in (("true", True), ("false", False), ("auto", "auto")):
        assert resolved(recipe, None, f"train.compile={written}").sections["train"].compile == value


def test_an_impossible_pair_names_the_section_and_who_set_it(recipe: Path) -> None:
    refused(recipe, "--set: [model]", "dim=10", "n_heads=4", overrides=("model.dim=10",))
    refused(recipe, "--set: train.batch_size=0", "greater than 0", overrides=("train.batch_size=0",))


# -- keys that exclude each other ------------------------------------------------------------------------------------


def test_a_later_length_replaces_an_earlier_one(tmp_path: Path, recipe: Path) -> None:
    write(tmp_path, "base.toml", MINIMAL)
    path = write(tmp_path, "mine.toml", "extends = 'base.toml'\n[train]\nepochs = 2\n")
    for found, wanted in (
        (resolved(path), (None, 2.0, None)),
        (resolved(path, {"train.minutes": 3}), (None, None, 3.0)),
        (resolved(path, {"train.minutes": 3}, "train.steps=4"), (4, None, None)),
    ):
        train = found.sections["train"]
        assert (train.steps, train.epochs, train.minutes) == wanted
        lengths = {key for key in found.origin if key in ("train.steps", "train.epochs", "train.minutes")}
        assert len(lengths) == 1  # the replaced one is nobody's any more
    train = resolved(recipe, {"train.batch_tokens": 512}).sections["train"]
    assert (train.batch_size, train.batch_tokens) == (None, 512)


def test_two_lengths_in_one_layer_are_refused(tmp_path: Path, recipe: Path) -> None:
    path = write(tmp_path, "mine.toml", MINIMAL + "minutes = 2\n")
    refused(path, "mine.toml", "train.steps and train.minutes exclude each other")
    refused(recipe, "--set", "train.steps and", overrides=("train.steps=1", "train.minutes=2"))
    refused(recipe, "flag", "train.batch_size and", flags={"train.batch_size": 1, "train.batch_tokens": 2})


def test_a_run_without_a_length_or_batch_is_refused(tmp_path: Path) -> None:
    refused(write(tmp_path, "mine.toml", "[train]\nbatch_size = 4\n"), "give one of steps, epochs, minutes")
    refused(write(tmp_path, "mine.toml", "[train]\nsteps = 4\n"), "give one of batch_size, batch_tokens")


# -- --set -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=word", "word"),
        ("a.b=two words", "two words"),
        ("a.b='3'", "3"),
        ("a.b=3", 3),
        ("a.b=-1e-4", -1e-4),
        ("a.b=1_000", 1000),
        ("a.b=true", True),
        ("a.b=True", "True"),
        ("a.b=[1, 2]", [1, 2]),
        ('a.b=["x", "y"]', ["x", "y"]),
        ("a.b=x=y", "x=y"),
        ("a.b=sample:shakespeare", "sample:shakespeare"),
        ("a.b=1979-05-27", "1979-05-27"),
        ("a.b={c = 1}", "{c = 1}"),
        ("a.b=1\nc = 2", "1\nc = 2"),  # more than a value is no TOML value
        ("a.b= 3 ", 3),
        (" a.b =3", 3),
        ("a.b=" + "[" * 5000, "[" * 5000),
    ],
)
def test_an_override_is_toml_or_a_bare_word(text: str, value: Any) -> None:
    found = parse_override(text)
    assert found == {"a.b": value}
    assert type(found["a.b"]) is type(value)


@pytest.mark.parametrize("text", ["", "train.steps", "steps=3", "train.steps=", "train.steps=  ", "=3"])
def test_a_malformed_override_is_refused(recipe: Path, text: str) -> None:
    refused(recipe, f"--set {text}: expected section.key=value", overrides=(text,))


@pytest.mark.parametrize("text", ["a.b.c=3", ".b=3", "a.=3"])
def test_an_override_of_no_section_and_key_is_refused(recipe: Path, text: str) -> None:
    refused(recipe, "--set", overrides=(text,))


@QUICK
@given(st.text(max_size=20))
def test_any_override_is_a_value_or_a_config_error(written: str) -> None:
    try:
        ((key, value),) = parse_override(f"a.b={written}").items()
    except ConfigError:
        assert not written.strip()
    else:
        assert key == "a.b"
        assert isinstance(value, bool | int | float | str | list)


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_recipe_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    refused(tmp_path / "none.toml", "none.toml", "No such file")
    refused(write(tmp_path, "bad.toml", "[train\n"), "bad.toml", "not TOML", "line 1")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    refused(tmp_path / "latin.toml", "latin.toml", "not UTF-8 at byte 5")


def test_a_runs_own_config_is_a_recipe_that_gives_the_same_values(tmp_path: Path, recipe: Path) -> None:
    first = resolved(recipe, {"train.minutes": 1.5}, "data.paths=['a.txt']", "tokenizer.kind=char")
    run = Run(name="mine", config=RunConfig(**first.sections), resolved=first)
    with RunFolder.open(tmp_path / "run", resume=False, overwrite=False) as folder:
        folder.write_record(run, {"choices": {"steps": 7}, "hashes": {"data": "x"}, "versions": {"torch": "2"}})
    again = resolved(tmp_path / "run" / "config.toml")
    assert again.sections == first.sections
    assert set(again.origin.values()) == {"run/config.toml"}
    record = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert record["origin"]["train.minutes"] == "flag"
    assert record["origin"]["data.paths"] == "--set"
    assert record["origin"]["train.batch_size"] == "pretrain/mine.toml"


def test_values_survive_the_way_through_toml(recipe: Path) -> None:
    values = resolved(recipe, None, 'data.paths=["a\\"b", "c"]').values()
    assert tomllib.loads(to_toml(values)) == {
        section: {key: list(value) if isinstance(value, tuple) else value for key, value in rows.items()}
        for section, rows in values.items()
    }
