"""The bounds of the style page that a reader of one file cannot see broken: sizes, quietness, no pickle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "nlpstack"

FILE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 8  # outside cli, whose callbacks take one a flag
AFTERNOON_LINES = 5_000  # model, data, tokenizer and train together
PACKAGE_LINES = 14_000

TALKS_TO_THE_WORLD = ("cli/", "train/runtime.py")
WORLD = {"print", "os.environ", "os.environb", "os.getenv", "os.getcwd", "os.getcwdb", "os.chdir", "Path.cwd"}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
TORCH_PICKLES = {"torch.load", "torch.save", "torch.jit.load", "torch.jit.save"}
UNPICKLES = "convert.py"  # for `nlpstack convert`, and by torch's reader of plain tensors alone


def dotted(node: ast.AST) -> str:
    """`a.b.c` as it is written; empty for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def names_used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that is imported or read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, dotted(node).removeprefix("pathlib.")


def oversized(name: str, source: str) -> list[str]:
    found = [f"{name}: {source.count(chr(10))} lines"] if source.count("\n") >= FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES:
            found.append(f"{name}:{node.lineno} {node.name} has {lines} lines")
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        count = sum(arg is not None and arg.arg not in ("self", "cls") for arg in given)
        if count > PARAMETERS and not name.startswith("cli/"):
            found.append(f"{name}:{node.lineno} {node.name} takes {count} parameters")
    return found


def loud(name: str, source: str) -> list[str]:
    if name.startswith(TALKS_TO_THE_WORLD):
        return []
    return [f"{name}:{line} {used}" for line, used in names_used(ast.parse(source)) if used in WORLD]


def pickling(name: str, source: str) -> list[str]:
    tree = ast.parse(source)
    fine = []
    for node in ast.walk(tree) if name == UNPICKLES else ():
        if isinstance(node, ast.Call) and dotted(node.func) == "torch.load":
            # Written at the call: neither torch's default nor what stands in a variable counts.
            said = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "weights_only"]
            fine += [(node.func.lineno, "torch.load")] * (said == ["True"])
    found = []
    for line, used in names_used(tree):
        if (line, used) in fine:
            fine.remove((line, used))
        elif used.partition(".")[0] in PICKLES or used in TORCH_PICKLES:
            found.append(f"{name}:{line} {used}")
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append(f"{name}:{node.lineno} allow_pickle={ast.unparse(node.value)}")
    return found


def sources() -> dict[str, str]:
    """Path inside the package to text, of every file of code."""
    return {p.relative_to(PACKAGE).as_posix(): p.read_text("utf-8") for p in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("check", [oversized, loud, pickling])
def test_every_file_keeps_within_the_bounds(check) -> None:
    assert len(sources()) > 5
    assert [fault for name, source in sources().items() for fault in check(name, source)] == []


def test_the_package_stays_readable_in_an_afternoon() -> None:
    lines = {name: source.count("\n") for name, source in sources().items()}
    core = ("model/", "data/", "tokenizer/", "train/")
    assert sum(count for name, count in lines.items() if name.startswith(core)) < AFTERNOON_LINES
    assert sum(lines.values()) < PACKAGE_LINES


def test_no_file_of_code_lies_in_a_stage_folder() -> None:
    stages = [PACKAGE.parent / stage for stage in ("pretrain", "finetune", "eval")]
    assert [path for stage in stages for path in stage.rglob("*.py")] == []


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (oversized, "x = 1\n" * 400),
        (oversized, "def f():\n" + "    x = 1\n" * 60),
        (oversized, "class A:\n    def f(self, a, b, c, d, e, f, g, *, h, **i): ..."),
        (loud, "print('hello')"),
        (loud, "import os\nhome = os.environ['HOME']"),
        (loud, "from os import environ"),
        (loud, "here = pathlib.Path.cwd()"),
        (loud, "import os\nhere = os.getcwd()"),
        (pickling, "import pickle"),
        (pickling, "from pickle import loads"),
        (pickling, "torch.load(path, weights_only=True)"),
        (pickling, "from torch import save"),
        (pickling, "np.load(path, allow_pickle=True)"),
    ],
)
def test_a_broken_bound_is_found(check, source: str) -> None:
    assert len(check("model/example.py", source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "torch.load(path, **{'weights_only': True})",
        "torch.load(path, None, None, True)",
        "read = torch.load",
        "from torch import load",
        "torch.jit.load(path)",
        "torch.save(tensors, path)",
        "import pickle",
        "np.load(path, allow_pickle=True)",
        "torch.load(path, weights_only=True); torch.load(path)",
        "torch.load(torch.load, weights_only=True)",
    ],
)
def test_the_one_place_that_opens_pickles_may_only_read_plain_tensors(source: str) -> None:
    assert len(pickling(UNPICKLES, source)) == 1


@pytest.mark.parametrize(
    ("check", "name", "source"),
    [
        (oversized, "model/example.py", "x = 1\n" * 399),
        (oversized, "model/example.py", "def f(self, a, b, c, d, e, f, g, *, h):\n" + "    x = 1\n" * 59),
        (oversized, "cli/example.py", "def f(a, b, c, d, e, f, g, h, i): ..."),
        (loud, "cli/example.py", "print(os.environ)"),
        (loud, "train/runtime.py", "os.environ.get('RANK')"),
        (loud, "model/example.py", "console.print('hello')"),
        (pickling, "model/example.py", "np.load(path, mmap_mode='r', allow_pickle=False)"),
        (pickling, "convert.py", "torch.load(path, map_location='cpu', weights_only=True, mmap=True)"),
    ],
)
def test_what_keeps_within_the_bounds_passes(check, name: str, source: str) -> None:
    assert check(name, source) == []
