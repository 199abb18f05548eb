"""`nlpstack data`."""

from typing import Any

import click

from nlpstack.cli.options import TASKS, echo, folder_option, make_reporter, output_options


@click.group("data")
def data_command() -> None:
    """Look at data before training on it.

    \b
    Example:
      nlpstack data check sample:wnut17 --task ner
    """


@data_command.command("check")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--task", type=TASKS, required=True, help="What it is for.")
@folder_option("--model", "Also count its tokens, those it does not know, and rows over its context.")
@output_options
def check_command(paths: tuple[str, ...], task: str, model: str | None, as_json: bool, quiet: bool, **_: Any) -> None:
    """Lint labelled data: counts, label balance, bad tags, doubles inside and across splits, over-long rows.

    \b
    Example:
      nlpstack data check sample:wnut17 --task ner --model runs/bert
    """
    from nlpstack.prepare import check_data

    found = check_data(paths, task, model=model, note=make_reporter(quiet=quiet).say)
    lines = []
    for name, split in found["splits"].items():
        labels = ", ".join(f"{label} {n:,}" for label, n in split["labels"].items())
        lines.append(f"{name}: {split['examples']:,} examples{'; ' if labels else ''}{labels}")
        if "tokens" in split:
            lines[-1] += f"; {split['tokens']:,} tokens, {split['mean']:.1f} a row, at most {split['longest']:,}"
    lines += [f"problem: {problem}" for problem in found["problems"]] or ["no problems found"]
    echo(found, "\n".join(lines), as_json=as_json)
