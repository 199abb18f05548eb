"""Who may import whom: the table of floors, read off the imports with `ast`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "nlpstack"

# A module imports only from floors below its own.
FLOORS: dict[str, float] = {
    "__main__": 9,  # the door into cli
    "cli": 8,
    **dict.fromkeys(
        [
            "pretrain",
            "finetune",
            "eval",
            "generate",
            "predict",
            "embed",
            "merge",
            "convert",
            "prepare",
            "check",
            "compare",
            "inspection",
        ],
        7,
    ),
    "attention": 7,
    "job": 6.5,  # a whole run: it asks what stands on the floor below
    "report": 6.4,  # the page of results
    "baselines": 6,
    "memory": 6,
    "results": 6,
    "start": 6,
    "train": 5,
    "tasks": 4,
    "hub": 3,
    "decode": 3,
    "tokenizer": 2,
    "model": 2,
    "data": 2,
    "metrics": 2,
    "config": 1,
    "recipes": 1,
    "samples": 1,
    "files": 1,
    "errors": 0,
    "signals": 0,
}

# The libraries a floor may use besides Python's own; pydantic also on floors 2 to 5, beside the classes it configures.
LIBRARIES: dict[float, set[str]] = {
    9: set(),
    8: {"click", "rich"},
    7: {"torch", "numpy", "sklearn"},
    6.5: {"torch"},
    6.4: {"numpy", "matplotlib", "jinja2"},
    6: {"sklearn", "numpy", "torch"},
    5: {"torch", "rich", "pydantic"},
    4: {"torch", "numpy", "pydantic"},  # numpy: ids of a corpus come as arrays
    3: {"torch", "numpy", "safetensors", "gguf", "pydantic"},
    0: set(),
}
LIBRARIES_OF: dict[str, set[str]] = {
    # numpy: ids of a corpus come and go as arrays; as lists of int they are ten times as large.
    "tokenizer": {"sentencepiece", "tokenizers", "jinja2", "numpy", "pydantic"},
    "model": {"torch", "numpy", "pydantic"},
    "data": {"torch", "numpy", "backports", "compression", "sentencex", "pydantic"},
    "metrics": {"numpy", "sklearn", "sacrebleu", "rouge_score", "pydantic"},
    "config": {"pydantic", "tomli_w"},
    "recipes": set(),  # these three are on the way of `nlpstack --help`
    "samples": set(),
    "files": set(),
}

TOP_LEVEL_NAMES = {"__version__"}  # what a module may take from `nlpstack` itself; the rest is re-exported from above
MAY_IMPORT_BY_VARIABLE = {"cli"}  # a command is imported when it is called


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import, wherever it stands; `?` for one whose name is only known at run time."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0] if node.args else None
            yield node.lineno, name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else "?"


def faults(module: str, source: str) -> list[str]:
    """What a module (`nlpstack.data.readers`; of a package, `nlpstack.data.__init__`) imports and may not."""
    own = module.split(".")[1]
    if own not in FLOORS:
        return [f"{module}: '{own}' is on no floor"]
    found = []
    for line, name in imports(ast.parse(source), module):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if name == "?":
            fine = own in MAY_IMPORT_BY_VARIABLE
        elif top != "nlpstack":
            fine = top in sys.stdlib_module_names or top in LIBRARIES_OF.get(own, LIBRARIES.get(FLOORS[own], set()))
        else:
            fine = target == own or target in TOP_LEVEL_NAMES or FLOORS.get(target, 99) < FLOORS[own]
        if not fine:
            found.append(f"{module}:{line} imports {name}")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(["nlpstack", *path.relative_to(PACKAGE).with_suffix("").parts]), path


def test_no_module_imports_a_step_up_or_sideways_or_a_library_of_another_floor() -> None:
    checked = [(name, path) for name, path in modules() if name != "nlpstack.__init__"]
    assert {"nlpstack.errors", "nlpstack.recipes.__init__", "nlpstack.__main__"} <= {name for name, _ in checked}
    assert [fault for name, path in checked for fault in faults(name, path.read_text("utf-8"))] == []


def test_the_top_package_only_re_exports_model_folders() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    names = {name for _, name in imports(tree, "nlpstack.__init__")}
    outside = {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
    assert outside == {"nlpstack.hub.folder", "nlpstack.hub.folder.load_model", "nlpstack.hub.folder.save_model"}


def test_the_top_package_exports_no_name_of_a_submodule() -> None:
    import nlpstack

    submodules = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} | set(FLOORS)
    assert not submodules & set(nlpstack.__all__)
    assert set(nlpstack.__all__) <= set(dir(nlpstack))
    with pytest.raises(AttributeError, match="no_such_name"):
        nlpstack.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nlpstack.model.gpt", "from nlpstack.hub.folder import load_model"),  # up
        ("nlpstack.model.gpt", "def f():\n    import nlpstack.train.trainer"),  # up, inside a function
        ("nlpstack.model.gpt", "if TYPE_CHECKING:\n    from nlpstack.tasks import Task"),  # up, for the types only
        ("nlpstack.data.readers", "from nlpstack.tokenizer.base import Tokenizer"),  # sideways
        ("nlpstack.data.readers", "from nlpstack import tokenizer"),
        ("nlpstack.data.readers", "from ..tokenizer import base"),
        ("nlpstack.data.__init__", "from .. import tokenizer"),
        ("nlpstack.data.readers", "import nlpstack"),  # who knows what it uses
        ("nlpstack.data.readers", "from nlpstack import load_model"),
        ("nlpstack.data.readers", "importlib.import_module('nlpstack.hub.folder')"),
        ("nlpstack.data.readers", "importlib.import_module(name)"),
        ("nlpstack.recipes.__init__", "from nlpstack.files import write_file"),
        ("nlpstack.config", "from nlpstack.recipes import find_recipe"),
        ("nlpstack.cli.main", "from nlpstack.__main__ import run"),
        ("nlpstack.pretrain", "from nlpstack.generate import generate"),
        ("nlpstack.errors", "import numpy"),
        ("nlpstack.metrics.text", "import torch"),
        ("nlpstack.tokenizer.base", "from torch import Tensor"),
        ("nlpstack.tasks.ner", "import transformers.models"),
        ("nlpstack.cli.main", "from torch import Tensor"),
        ("nlpstack.utils", "import os"),  # on no floor
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "nlpstack.train.trainer",
            "from nlpstack.train.optim import x\nfrom . import log\nfrom nlpstack.model import y",
        ),
        ("nlpstack.train.run", "import os, torch\nfrom nlpstack import __version__\nfrom nlpstack.errors import E"),
        ("nlpstack.metrics.text", "def f():\n    import sacrebleu.metrics"),
        ("nlpstack.cli.main", "import click\nimport_module(name)\nfrom nlpstack.pretrain import pretrain"),
        ("nlpstack.__main__", "from nlpstack.cli import run"),
    ],
)
def test_an_allowed_import_is_not_found(module: str, source: str) -> None:
    assert faults(module, source) == []


LIGHT = ["nlpstack", "nlpstack.errors", "nlpstack.files", "nlpstack.recipes", "nlpstack.samples", "nlpstack.cli"]


@pytest.mark.parametrize(
    ("importing", "heavy"),
    [
        (LIGHT, {"torch", "numpy", "pydantic", "sklearn", "sentencepiece"}),
        (["nlpstack.metrics"], {"torch", "sklearn", "sacrebleu", "rouge_score"}),
    ],
)
def test_importing_loads_nothing_heavy(importing: list[str], heavy: set[str]) -> None:
    code = f"import sys, {', '.join(importing)}; print(sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
