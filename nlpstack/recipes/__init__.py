"""Find the recipes that ship with nlpstack: by name, by path, or all of them."""

from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from nlpstack.errors import ConfigError, did_you_mean

STAGES = ("pretrain", "finetune", "eval")


class Recipe(NamedTuple):
    """One TOML file that is one complete run."""

    name: str  # without the stage: "gpt"
    stage: str
    path: Path
    summary: str  # the comment lines the file begins with, without their '#'

    @property
    def full_name(self) -> str:
        """The name that is never ambiguous: `pretrain/gpt`."""
        return f"{self.stage}/{self.name}"


def list_recipes(stage: str | None = None) -> list[Recipe]:
    """The recipes of one stage, or of all, in the order of the stages and then of their names."""
    if stage is not None and stage not in STAGES:
        raise ConfigError(f"unknown stage '{stage}'; there are: {', '.join(STAGES)}")
    stages = STAGES if stage is None else (stage,)
    paths = [path for folder in stages for path in sorted((_stage_root() / folder).glob("*.toml"))]
    return [Recipe(path.stem, path.parent.name, path, _summary(path)) for path in paths]


def find_recipe(name_or_path: str, stage: str | None = None) -> Path:
    """The file of a recipe, given by its path (.toml, or with a slash) or its name, such as `gpt` or `pretrain/gpt`."""
    path = Path(name_or_path)
    if (path.suffix == ".toml" or path.name != name_or_path) and path.is_file():
        return path
    recipes = list_recipes(stage)
    found = [recipe for recipe in recipes if name_or_path in (recipe.name, recipe.full_name)]
    if len(found) == 1:
        return found[0].path
    if found:
        choices = " or ".join(f"'{recipe.full_name}'" for recipe in found)
        raise ConfigError(f"'{name_or_path}' is the name of {len(found)} recipes; say {choices}")
    what = f"no {stage + ' ' if stage else ''}recipe is called '{name_or_path}'"
    if name_or_path.endswith(".toml"):
        what = f"there is no file '{name_or_path}', and no recipe of that name"
    keys = sorted({key for recipe in recipes for key in (recipe.name, recipe.full_name)})
    hint = did_you_mean(name_or_path.removesuffix(".toml"), keys) or did_you_mean(path.stem, keys) or ";"
    there = ", ".join(recipe.full_name for recipe in recipes) or "none"
    raise ConfigError(f"{what}{hint} there are: {there}")


def _stage_root() -> Path:
    """The folder of the stage folders: this one in an installed wheel, the checkout's top level otherwise."""
    here = Path(__file__).resolve().parent
    return here if any((here / stage).is_dir() for stage in STAGES) else here.parents[1]


def _summary(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))
