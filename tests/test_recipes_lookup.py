"""Recipes and bundled data sets are found by name; a wrong name is answered with the right one."""

import hashlib
from pathlib import Path

import pytest

from nlpstack import recipes, samples
from nlpstack.errors import ConfigError
from nlpstack.recipes import find_recipe, list_recipes
from nlpstack.samples import sample, sample_names


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few recipes in folders of their own, in place of the real ones."""
    texts = {
        "pretrain/gpt.toml": "# A GPT.\n# bundled text, CPU, 2 minutes\n\n# not this\n[train]\n",
        "pretrain/bert.toml": "[train]\n# too late\n",
        "finetune/ner.toml": "#no space\nextends = 'x'\n",
        "eval/ner.toml": "",
        "eval/README.md": "# no recipe\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(recipes, "_stage_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path / "eval")
    return tmp_path


def test_the_list_is_sorted_by_stage_and_name_with_the_leading_comment(stages: Path) -> None:
    listed = [(recipe.full_name, recipe.summary) for recipe in list_recipes()]
    assert listed == [
        ("pretrain/bert", ""),
        ("pretrain/gpt", "A GPT.\nbundled text, CPU, 2 minutes"),
        ("finetune/ner", "no space"),
        ("eval/ner", ""),
    ]
    assert list_recipes("eval") == [recipes.Recipe("ner", "eval", stages / "eval/ner.toml", "")]


@pytest.mark.parametrize(
    ("name", "stage", "file"),
    [
        ("gpt", None, "pretrain/gpt.toml"),
        ("gpt", "pretrain", "pretrain/gpt.toml"),
        ("pretrain/gpt", "pretrain", "pretrain/gpt.toml"),
        ("ner", "finetune", "finetune/ner.toml"),
        ("eval/ner", None, "eval/ner.toml"),
    ],
)
def test_a_recipe_is_found_by_its_name(stages: Path, name: str, stage: str | None, file: str) -> None:
    assert find_recipe(name, stage) == stages / file


def test_an_existing_file_is_taken_as_it_is(stages: Path) -> None:
    Path("mine.toml").write_text("")
    Path("gpt").write_text("not a recipe: no slash, no .toml")
    assert find_recipe("mine.toml") == Path("mine.toml")
    assert find_recipe("./mine.toml", "pretrain") == Path("mine.toml")
    assert find_recipe("../pretrain/gpt.toml") == Path("../pretrain/gpt.toml")
    assert find_recipe("./gpt") == Path("gpt")
    assert find_recipe("gpt") == stages / "pretrain/gpt.toml"


@pytest.mark.parametrize(
    ("name", "stage", "message"),
    [
        (
            "gtp",
            None,
            "no recipe is called 'gtp'; did you mean 'gpt'? "
            "there are: pretrain/bert, pretrain/gpt, finetune/ner, eval/ner",
        ),
        (
            "pretain/gpt",
            "pretrain",
            "no pretrain recipe is called 'pretain/gpt'; did you mean 'pretrain/gpt'? "
            "there are: pretrain/bert, pretrain/gpt",
        ),
        (
            "pretrain/gpt.toml",
            "pretrain",
            "there is no file 'pretrain/gpt.toml', and no recipe of that name; did you mean 'pretrain/gpt'? "
            "there are: pretrain/bert, pretrain/gpt",
        ),
        (
            "finetune/ner",
            "eval",
            "no eval recipe is called 'finetune/ner'; did you mean 'ner'? there are: eval/ner",
        ),
        ("zzz", "eval", "no eval recipe is called 'zzz'; there are: eval/ner"),
        ("", "eval", "no eval recipe is called ''; there are: eval/ner"),
        ("ner", None, "'ner' is the name of 2 recipes; say 'finetune/ner' or 'eval/ner'"),
        ("gpt", "train", "unknown stage 'train'; there are: pretrain, finetune, eval"),
    ],
)
def test_a_wrong_name_names_the_nearest(stages: Path, name: str, stage: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_recipe(name, stage)
    assert str(caught.value) == message


def test_the_checkouts_stage_folders_are_the_ones_listed() -> None:
    root = Path(__file__).resolve().parents[1]
    files = [path for stage in recipes.STAGES for path in sorted((root / stage).glob("*.toml"))]
    assert [recipe.path for recipe in list_recipes()] == files


def test_a_sample_of_one_file_is_that_file() -> None:
    path = sample("shakespeare")
    assert path.name == "input.txt"
    readme = (path.parent / "README.md").read_text("utf-8")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in readme
    assert f"{path.stat().st_size:,} bytes" in readme


def test_the_bundled_shakespeare_is_the_published_file(shared_data: Path) -> None:
    assert sample("shakespeare").read_bytes() == (shared_data / "tinyshakespeare/input.txt").read_bytes()


def test_a_sample_of_several_files_is_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["one/README.md", "one/LICENSE", "one/text.txt", "two/README.md", "two/train.tsv", "two/test.tsv"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(samples, "__file__", str(tmp_path / "__init__.py"))
    assert sample_names() == ["one", "two"]
    assert sample("one") == tmp_path / "one/text.txt"
    assert sample("two") == tmp_path / "two"


@pytest.mark.parametrize("name", ["shakespear", "", "../recipes", "shakespeare/input.txt"])
def test_an_unknown_sample_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(
        ConfigError, match="there are: abstracts, banking77, e2e, shakespeare, snli_cad, uner_en_ewt, wnut17"
    ) as caught:
        sample(name)
    assert ("did you mean 'shakespeare'?" in str(caught.value)) == name.startswith("shakespear")


@pytest.mark.parametrize("name", sample_names())
def test_every_sample_has_a_licence_and_data(name: str) -> None:
    path = sample(name)
    folder = path if path.is_dir() else path.parent
    assert (folder / "LICENSE").stat().st_size > 0
    assert path.is_file() or list(folder.glob("train.*"))
