"""The data sets that ship with nlpstack, each a folder with README.md and LICENSE; `--data sample:NAME` names one."""

from pathlib import Path

from nlpstack.errors import ConfigError, did_you_mean

_NOT_DATA = frozenset({"README.md", "LICENSE"})


def sample_names() -> list[str]:
    """The names of the bundled data sets, sorted."""
    return sorted(path.parent.name for path in Path(__file__).resolve().parent.glob("*/README.md"))


def sample(name: str) -> Path:
    """The path that readers take for a bundled data set: its data file if it has only one, else its folder."""
    names = sample_names()
    if name not in names:
        hint = did_you_mean(name, names) or ";"
        raise ConfigError(f"no sample is called '{name}'{hint} there are: {', '.join(names)}")
    folder = Path(__file__).resolve().parent / name
    files = [path for path in sorted(folder.iterdir()) if path.name not in _NOT_DATA and not path.name.startswith(".")]
    return files[0] if len(files) == 1 else folder
