"""`nlpstack eval`."""

import json
from pathlib import Path
from typing import Any

import click

from nlpstack.cli.options import (
    DTYPES,
    arguments,
    base_option,
    check_folder_of,
    complete_folders,
    echo_json,
    machine_options,
    make_reporter,
    output_options,
    set_option,
    typed_command,
    writing,
)
from nlpstack.files import write_text

_WIDEST = 10_000  # columns: a row is one line, in a pipe and on any terminal


@click.command("eval")
@click.argument("models", nargs=-1, metavar="[MODEL ...]", shell_complete=complete_folders)
@click.option("--data", multiple=True, metavar="PATH", help="Text to score [default: the run's own].")
@click.option("--documents", type=click.Choice(["files", "paragraphs"]), help="What a document is in .txt files.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: test, else val]")
@base_option
@click.option(
    "--unknown-labels",
    type=click.Choice(["error", "ignore"]),
    default="error",
    show_default=True,
    help="Examples with a label that training never saw.",
)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only this score; repeatable.")
@click.option("--window", type=int, help="Input tokens at a time [default: the model's context].")
@click.option("--stride", type=int, help="Tokens from window to window [default: the window].")
@click.option("--dtype", type=DTYPES, default="fp32", show_default=True, help="Products; in the signature.")
@click.option("--save", metavar="FILE", help="Also write the results to this JSON file.")
@machine_options
@set_option
@output_options
def eval_command(models: tuple[str, ...], **given: Any) -> None:
    """Score models (default: every finished run under runs/) and print one table.

    \b
    Examples:
      nlpstack eval
      nlpstack eval runs/gpt --data my-test.txt --stride 64
    """
    from nlpstack.eval import EvalOptions, evaluate

    if given["save"]:
        check_folder_of("--save", given["save"])
    options = EvalOptions(
        ignore_unknown=given["unknown_labels"] == "ignore",
        flags={"window": given["window"], "stride": given["stride"]},
        command=typed_command(),
        **arguments(given, "data", "documents", "split", "base", "metrics", "overrides", "dtype"),
    )
    found = {"results": evaluate(models, options, reporter=make_reporter(quiet=given["quiet"]))}
    if given["save"]:
        with writing("--save", given["save"]):
            write_text(Path(given["save"]), json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if given["as_json"]:
        echo_json(found)
    else:
        _print_table(found["results"])


def _print_table(results: list[dict[str, Any]]) -> None:
    """One row a score, and each signature once below."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("model", "split", "metric", "value", "95 % interval", "n", "how"):
        table.add_column(title, justify="left" if title in ("model", "split", "metric") else "right", no_wrap=True)
    signatures: dict[str, int] = {}
    for result in results:
        for name, score in result["metrics"].items():
            number = signatures.setdefault(score["signature"], len(signatures) + 1)
            value, low, high = ("-" if score[key] is None else f"{score[key]:.4f}" for key in ("value", "low", "high"))
            model, interval = Text(result["model"]), f"{low} to {high}"
            table.add_row(model, result["split"], name, value, interval, f"{score['n']:,}", f"({number})")
    console = Console(highlight=False, soft_wrap=True, width=_WIDEST)
    console.print(table)
    for signature, number in signatures.items():
        console.print(f"({number}) {signature}", markup=False)
