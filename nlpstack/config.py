"""Recipes: TOML to typed sections, with one `extends`, flags and overrides, and where each value came from."""

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import tomli_w
from pydantic import TypeAdapter, ValidationError

from nlpstack.errors import ConfigError, NlpstackError, did_you_mean

T = TypeVar("T")
Values = dict[str, dict[str, Any]]  # section -> key -> value
Layer = tuple[str, Values]  # the file or flag that gives values, and these
Schema = Mapping[str, type]  # section -> the class that it is built into
# Tables of a run's config.toml that say how it came about; a recipe may hold them, and they change nothing.
RECORDS = ("origin", "choices", "hashes", "versions", "command", "inexact", "start")
to_toml = tomli_w.dumps  # tables as TOML text


@dataclass(frozen=True)
class Resolved:
    """The sections of a run, each built and checked, and the origin of every value that was set."""

    sections: dict[str, Any]  # section name -> its config object
    origin: dict[str, str]  # "section.key" -> the file or flag that set it
    notes: list[str] = field(default_factory=list)  # what was done about values that a later choice makes meaningless

    def values(self) -> Values:
        """Every value of every section, defaults included; None is left out, since TOML has no word for it."""
        tables = {name: asdict(section) for name, section in self.sections.items()}
        return {name: {key: v for key, v in table.items() if v is not None} for name, table in tables.items()}


def resolve(recipe: Path, schema: Schema, flags: Mapping[str, Any], overrides: Iterable[str] = ()) -> Resolved:
    """Build the sections of `schema` from a recipe, the flags ("section.key" -> value) and the --set texts.

    Precedence: default < extended file < recipe < flag < --set. Raises ConfigError naming value, origin and cure.
    """
    settings = {key: value for text in overrides for key, value in parse_override(text).items()}
    layers = [*_read_recipe(recipe, schema), _split_keys("flag", flags), _split_keys("--set", settings)]
    values: Values = {name: {} for name in schema}
    for source, layer in layers:
        check_keys(layer, schema, source)
        for section, entries in layer.items():
            _drop_rivals(values[section], section, entries, source, schema[section])
            values[section] |= entries
    notes = [note for name, cls in schema.items() for note in _fit_options(values[name], layers, name, cls)]
    set_by = [(source, name, key) for source, layer in layers for name, entries in layer.items() for key in entries]
    origin = {f"{name}.{key}": source for source, name, key in set_by if key in values[name]}
    return Resolved({s: build(cls, values[s], s, origin, str(recipe)) for s, cls in schema.items()}, origin, notes)


def _drop_rivals(values: dict[str, Any], section: str, entries: dict[str, Any], source: str, cls: type) -> None:
    """Of keys that exclude each other (`one_of` of the section's class), a later layer's replaces an earlier one's."""
    for group in getattr(cls, "one_of", ()):
        chosen = [key for key in group if key in entries]
        if len(chosen) > 1:
            raise ConfigError(f"{source}: {section}.{chosen[0]} and {section}.{chosen[1]} exclude each other; give one")
        for key in group if chosen else ():
            values.pop(key, None)


def _fit_options(values: dict[str, Any], layers: list[Layer], section: str, cls: type) -> list[str]:
    """Leave out what a choice of a later layer has no use for (`options_of` of its class); lines that say so."""
    # An option that stays but was set for another choice, whose default differs, is named too.
    key, options = cast(tuple[str, Mapping[str, Mapping[str, Any]]], getattr(cls, "options_of", ("", {})))
    entries = [(source, layer.get(section, {})) for source, layer in layers]
    chosen = [(place, own[key]) for place, (_, own) in enumerate(entries) if key in own]
    if not chosen or not isinstance(chosen[-1][1], str) or chosen[-1][1] not in options:
        return []
    place, name = chosen[-1]
    before = str(chosen[-2][1]) if len(chosen) > 1 else getattr(cls, key)
    earlier = {option: source for source, own in entries[:place] for option in own}
    later = {option for _, own in entries[place:] for option in own}
    notes = []
    for option in sorted({option for known in options.values() for option in known} & earlier.keys() - later):
        what = f"{section}.{option}={json.dumps(values[option], default=str)} of {earlier[option]}"
        usual = options[name].get(option)
        if option not in options[name]:
            del values[option]
            notes.append(f"{what} left out: {name} has none")
        elif usual != options.get(before, {}).get(option):
            notes.append(f"{what} kept, though chosen for {before}; the default of {name} is {json.dumps(usual)}")
    return notes


def parse_override(text: str) -> dict[str, Any]:
    """`section.key=value` as {"section.key": value}; a bare word is a string, all else is read as TOML."""
    key, equals, written = text.partition("=")
    if not equals or "." not in key or not written.strip():
        raise ConfigError(f"--set {text}: expected section.key=value, such as train.steps=100")
    try:
        found = tomllib.loads(f"value = {written}")
    except (tomllib.TOMLDecodeError, RecursionError):
        found = {}
    value = found.get("value")
    if len(found) != 1 or not isinstance(value, bool | int | float | str | list):
        value = written.strip()  # no TOML, or more than a value; dates and inline tables mean nothing here
    return {key.strip(): value}


def _split_keys(source: str, flat: Mapping[str, Any]) -> Layer:
    nested: Values = {}
    for path, value in flat.items():
        section, _, key = path.partition(".")
        if not key or "." in key:
            raise ConfigError(f"{source}: '{path}' is not a section.key")
        nested.setdefault(section, {})[key] = value
    return source, nested


def _read_recipe(path: Path, schema: Schema) -> list[Layer]:
    """The recipe and, before it, the file it extends, each with its name."""
    tables = read_toml(path)
    base = tables.pop("extends", None)
    if base is None:
        return [_layer(tables, path, schema)]
    if not isinstance(base, str) or base in ("", ".", "..") or "/" in base or "\\" in base:
        raise ConfigError(f"{path}: extends={base!r} must name one recipe in the same folder, such as 'gpt.toml'")
    parent = path.with_name(base)
    if not parent.is_file():
        names = [file.name for file in path.parent.glob("*.toml")]
        raise ConfigError(f"{path}: extends={base!r}, which is not there{near(base, names)}")
    parent_tables = read_toml(parent)
    if "extends" in parent_tables:
        raise ConfigError(f"{parent}: is extended by {path} and extends another; one level is allowed")
    return [_layer(parent_tables, parent, schema), _layer(tables, path, schema)]


def _layer(tables: dict[str, Any], path: Path, schema: Schema) -> Layer:
    for name, entries in tables.items():
        if not isinstance(entries, dict):
            raise ConfigError(f"{path}: '{name}' stands outside any section; sections are {sorted(schema)}")
    sections = {name: entries for name, entries in tables.items() if name not in RECORDS}
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name, sections


def check_keys(values: Values, schema: Schema, source: str) -> None:
    """Raise ConfigError at the first section or key that does not exist, with the nearest one that does."""
    for section, entries in values.items():
        if section not in schema:
            raise ConfigError(f"{source}: unknown section '{section}'{near(section, schema)}")
        known = [field.name for field in fields(schema[section])]
        for key in entries:
            if key not in known:
                raise ConfigError(f"{source}: unknown key '{section}.{key}'{near(key, known, section + '.')}")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError names the file and what is wrong with it."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        json.dumps(tables, default=str)  # what is too deep, or too many digits, to be shown is refused here
        return tables
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def checked(cls: type[T], value: object, place: object, kind: type[NlpstackError]) -> T:
    """What a file holds as a `cls`; raises `kind`, naming the place and the key, if it is none."""
    try:
        return TypeAdapter(cls).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = "".join(f"{part}: " for part in first["loc"])
        raise kind(f"{place}: {at}{first['msg'].removeprefix('Value error, ')}") from error


def near(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'x'?` where a known word is close, else the list of them."""
    known = sorted(known)
    return did_you_mean(word, known, prefix) or (f"; there are: {', '.join(known)}" if known else "")


def build(cls: type[T], values: Mapping[str, Any], section: str, origin: Mapping[str, str], recipe: str) -> T:
    """One section's config object; ConfigError names the value, its origin and what would be right."""

    def named(key: str) -> str:
        if key:
            return f"{origin.get(f'{section}.{key}', recipe)}: {section}.{key}"
        sources = sorted({origin[f"{section}.{key}"] for key in values if f"{section}.{key}" in origin})
        return f"{', '.join(sources) or recipe}: [{section}]"

    return validated(cls, values, named, ConfigError)


def validated(cls: type[T], values: Mapping[str, Any], named: Callable[[str], str], kind: type[NlpstackError]) -> T:
    """A config object of these values; raises `kind`, naming the value, or them all (""), as `named` does."""
    for key, value in values.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, float) and not math.isfinite(one) for one in numbers):
            raise kind(f"{named(key)}={value} must be finite")
    try:
        # As JSON: pydantic's lax mode would turn "3" and true into numbers, its strict mode refuses plain dicts.
        # JSON lacks TOML's dates; as text they get pydantic's message of what would be right.
        return TypeAdapter(cls).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        faults = [(entry["loc"][:1], entry["msg"].removeprefix("Value error, ")) for entry in error.errors()]
        place, reason = faults[0]
        if not place:
            raise kind(f"{named('')} {reason}") from error
        key = str(place[0])
        got = f"={values[key]!r}" if key in values else ""
        # Several where types are joined by |.
        reason = " or ".join(reason[0].lower() + reason[1:] for place, reason in faults if place == (key,))
        # A misspelt choice may be close to one of those that pydantic's message quotes.
        hint = did_you_mean(values[key], re.findall("'([^']*)'", reason)) if isinstance(values.get(key), str) else ""
        raise kind(f"{named(key)}{got}: {reason}{hint}") from error
