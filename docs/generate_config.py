"""The tables of options in these pages, read from the config classes themselves, so that they cannot go stale."""

import ast
import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from nlpstack.train.run import SECTIONS

ALL_SECTIONS = "<!-- every section -->"
ONE_CLASS = re.compile(r"<!-- options of ([\w.]+) -->")

_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_KINDS = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}


class Option(NamedTuple):
    """One key of a section."""

    name: str
    kind: str
    default: str
    description: str


def options(cls: Any) -> list[Option]:
    """Every option of a config class, in its order; ValueError if one has neither a comment nor a description."""
    said = comments(cls)
    found = []
    for name, field in cls.__pydantic_fields__.items():
        description = said.get(name)
        if description is None:
            raise ValueError(f"{cls.__name__}.{name} has no comment beside it that says what it is")
        bounds = [
            f"{word} {getattr(entry, key)}"
            for entry in field.metadata
            for key, word in _BOUNDS.items()
            if getattr(entry, key, None) is not None
        ]
        kind = " ".join([_kind(field.annotation), " and ".join(bounds)]).strip()
        default = _toml(field.get_default(call_default_factory=True))
        found.append(Option(name, kind, default, _in_toml(description)))
    return found


def comments(cls: Any) -> dict[str, str]:
    """The comment behind each field of a class, or else above it, as the source has it."""
    source = inspect.getsource(cls)
    by_line, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            by_line[token.start[0]] = re.sub(r"#\s*(type: ignore|noqa)\S*", "", token.string).strip(" #")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        first, last = node.lineno, node.end_lineno or node.lineno
        while first - 1 in alone:
            first -= 1
        behind = [by_line[line] for line in range(node.lineno, last + 1) if line in by_line]
        above = [by_line[line] for line in range(first, node.lineno)]
        if text := " ".join(behind or above).strip():
            found[node.target.id] = text
    return found


def _kind(annotation: Any) -> str:
    """What values a key takes, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return "one of " + ", ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in inner if part is not NoneType).replace(" or one of ", " or ")
    if origin in (list, tuple):
        return f"list, each a {_kind(inner[0])}"
    if origin is dict:
        return f"table, each key a {_kind(inner[0])}, each value a {_kind(inner[1])}"
    return _KINDS[annotation]


def _in_toml(text: str) -> str:
    """What the code says of itself, in the words of a recipe, which has no None."""
    return re.sub(r"^(.*\. )?None:", lambda match: f"{match[1] or ''}{'Not' if match[1] else 'not'} set:", text)


def _toml(value: object) -> str:
    """A default as a recipe would write it."""
    if value is None:
        return "not set"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"`{value:_}`"
    return f"`{json.dumps(value)}`"


def table(cls: Any) -> str:
    """The options of a class as a Markdown table."""
    rows = ["| key | value | default | what it is |", "|---|---|---|---|"]
    for option in options(cls):
        cells = (f"`{option.name}`", *option[1:])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def choices(cls: Any) -> str:
    """What each choice of a class's `options_of` has, and with which defaults, as a Markdown table."""
    key, options_of_choice = cls.options_of
    rows = [f"| `{key}` | its options, and their defaults |", "|---|---|"]
    for choice, defaults in options_of_choice.items():
        written = ", ".join(f"`{name} = {json.dumps(default)}`" for name, default in defaults.items())
        rows.append(f"| `{choice}` | {written} |")
    return "\n".join(rows)


def sections() -> Iterator[str]:
    """A heading, a sentence and a table for every section of a recipe."""
    for name, cls in SECTIONS.items():
        yield f"## `[{name}]`\n\n{_in_toml(inspect.getdoc(cls) or '')}\n\n{table(cls)}"
        if hasattr(cls, "options_of"):
            yield choices(cls)
        for group in getattr(cls, "one_of", ()):
            yield f"Of {' and '.join(f'`{key}`' for key in group)}, a recipe gives exactly one."


def fill_page(text: str) -> str:
    """A page with its placeholders filled in."""
    if ALL_SECTIONS in text:
        text = text.replace(ALL_SECTIONS, "\n\n".join(sections()))
    return ONE_CLASS.sub(lambda match: table(_named(match[1])), text)


def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def source_files() -> list[Path]:
    """The files that the tables are made from."""
    classes = [*SECTIONS.values(), _named("nlpstack.decode.Sampling")]
    return [Path(__file__), *(Path(inspect.getfile(cls)) for cls in classes)]
