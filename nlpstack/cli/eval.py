"""`nlpstack eval`."""

from typing import Any

import click

from nlpstack.cli.options import (
    DTYPES,
    complete_folders,
    echo_json,
    machine_options,
    make_reporter,
    output_options,
    set_option,
    typed_command,
)

_WIDEST = 10_000  # columns: a row is one line, in a pipe and on any terminal


@click.command("eval")
@click.argument("models", nargs=-1, metavar="[MODEL ...]", shell_complete=complete_folders)
@click.option("--data", multiple=True, metavar="PATH", help="Text to score [default: the run's own].")
@click.option("--documents", type=click.Choice(["files", "paragraphs"]), help="What a document is in .txt files.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: test, else val]")
@click.option("--base", metavar="DIR", shell_complete=complete_folders, help="An adapter's base, where it has moved.")
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
    from pathlib import Path

    from nlpstack.errors import ConfigError
    from nlpstack.eval import EvalOptions, evaluate

    if given["save"] and not Path(given["save"]).parent.is_dir():  # known now, not after an hour of scoring
        raise ConfigError(f"--save {given['save']}: there is no folder {Path(given['save']).parent}; make it first")
    options = EvalOptions(
        data=given["data"],
        documents=given["documents"],
        split=given["split"],
        base=given["base"],
        ignore_unknown=given["unknown_labels"] == "ignore",
        metrics=given["metrics"],
        overrides=given["overrides"],
        flags={"window": given["window"], "stride": given["stride"]},
        device=given["device"] or "auto",
        dtype=given["dtype"],
        threads=given["threads"],
        command=typed_command(),
    )
    results = evaluate(models, options, reporter=make_reporter(quiet=given["quiet"]))
    if given["save"]:
        _save(given["save"], results)
    if given["as_json"]:
        echo_json({"results": results})
    else:
        _print_table(results)


def _save(path: str, results: list[dict[str, Any]]) -> None:
    import json
    from pathlib import Path

    from nlpstack.errors import ConfigError
    from nlpstack.files import write_text

    try:
        write_text(Path(path), json.dumps({"results": results}, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(f"--save {path}: cannot be written ({error.strerror})") from error


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
