"""`nlpstack eval`."""

import json
from pathlib import Path
from typing import Any

import click

from nlpstack.cli import options as shared
from nlpstack.files import check_output, write_text, writing

_WIDEST = 10_000  # columns: a row is one line, in a pipe and on any terminal


@click.command("eval")
@click.argument("models", nargs=-1, metavar="[MODEL ...]", shell_complete=shared.complete_folders)
@click.option("--data", multiple=True, metavar="PATH", help="Text to score [default: the run's own].")
@click.option("--documents", type=click.Choice(["files", "paragraphs"]), help="What a document is in .txt files.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: test, else val]")
@shared.base_option
@click.option(
    "--unknown-labels",
    type=click.Choice(["error", "ignore"]),
    default="error",
    help="Examples with a label that training never saw.",
)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only this score; repeatable.")
@click.option("--window", type=int, help="Input tokens at a time [default: the model's context].")
@click.option("--stride", type=int, help="Tokens from window to window [default: the window].")
@click.option("--dtype", type=shared.DTYPES, default="fp32", help="Products; in the signature.")
@click.option("--save", metavar="FILE", help="Also write the results to this JSON file.")
@shared.machine_options
@shared.set_option
@shared.output_options
def eval_command(models: tuple[str, ...], **given: Any) -> None:
    """Score models (default: every finished run under runs/) and print one table.

    \b
    Examples:
      nlpstack eval
      nlpstack eval runs/gpt --data my-test.txt --stride 64
    """
    from nlpstack.eval import EvalOptions, evaluate

    if given["save"]:
        check_output(Path(given["save"]), "--save ")
    options = EvalOptions(
        ignore_unknown=given["unknown_labels"] == "ignore",
        flags={"window": given["window"], "stride": given["stride"]},
        command=shared.typed_command(),
        **shared.arguments(given, "data", "documents", "split", "base", "metrics", "overrides", "dtype"),
    )
    found = {"results": evaluate(models, options, reporter=shared.make_reporter(quiet=given["quiet"]))}
    if given["save"]:
        with writing(save := Path(given["save"]), "--save "):
            write_text(save, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if given["as_json"]:
        shared.echo_json(found)
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
