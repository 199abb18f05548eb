"""`nlpstack doctor`."""

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
    lines = []
    for name, section in () if quiet else found.items():
        if name == "extras":
            for extra, has in section.items():
                told = f"{'installed' if has['installed'] else 'not installed'}: {has['gives']}"
                lines.append(f"{f'[{extra}]':<11}{told}")
        elif name != "problems":
            told = "; ".join(_said(key, value) for key, value in section.items() if value is not None)
            lines.append(f"{name:<11}{told}")
    lines += [f"problem: {problem}" for problem in found["problems"]] or ["no problem found"]
    echo(found, "\n".join(lines), as_json=as_json)


def _said(key: str, value: object) -> str:
    if isinstance(value, int) and key.endswith("_bytes"):
        key, value = key.removesuffix("_bytes"), f"{value / 2**30:,.1f} GiB"
    return f"{key.replace('_', ' ')} {value}"
