"""`nlpstack doctor`."""

from collections.abc import Iterator
from typing import Any

import click

from nlpstack.cli.options import arguments, echo, folder_option, machine_options, output_options


@click.command("doctor")
@folder_option("--out", "Where runs go [default: here].")
@click.option("--full", is_flag=True, help="Compile a small function too, which takes long.")
@machine_options
@output_options
def doctor_command(out: str | None, full: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """What this machine has for a run: versions, and each choice with the measurement that speaks for it.

    A problem found is a line that begins with "problem:"; --quiet shows these alone.

    \b
    Example:
      nlpstack doctor --out runs
    """
    from nlpstack.inspection import doctor

    found = doctor(out or ".", full=full, **arguments(given))
    rows = [] if quiet else [f"{name:<11}{value}" for name, value in _rows(found)]
    problems = [f"problem: {problem}" for problem in found["problems"]] or ["no problem found"]
    echo(found, "\n".join(rows + problems), as_json=as_json)


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, section in found.items():
        if name == "extras":
            for extra, has in section.items():
                yield f"[{extra}]", f"{'installed' if has['installed'] else 'not installed'}: {has['gives']}"
        elif name != "problems":
            yield name, "; ".join(_said(key, value) for key, value in section.items() if value is not None)


def _said(key: str, value: object) -> str:
    if isinstance(value, int) and key.endswith("_bytes"):
        key, value = key.removesuffix("_bytes"), f"{value / 2**30:,.1f} GiB"
    return f"{key.replace('_', ' ')} {value}"
