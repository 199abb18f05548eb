"""`nlpstack data`."""

from typing import Any

import click

from nlpstack.cli.options import TASKS, echo, folder_option, make_reporter, output_options


@click.group("data")
def data_command() -> None:
    """Look at data before training on it, or tokenize it ahead.

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


@data_command.command("tokenize")
@click.option("--data", "paths", required=True, multiple=True, metavar="PATH", help="File, folder, glob, sample:NAME.")
@folder_option("--tokenizer", "A tokenizer's, model's or run's folder.", required=True)
@folder_option("--out", "Where the folder of shards goes; the same for all slices.", required=True)
@click.option("--arch", type=click.Choice(["gpt", "bert", "roberta"]), default="gpt", help="What will read them.")
@click.option("--slice", "part", default="1/1", metavar="I/N", help="Only the I-th of N parts.")
@click.option("--documents", type=click.Choice(["files", "paragraphs"]), default="files", help="What a document is.")
@output_options
def tokenize_command(paths: tuple[str, ...], part: str, as_json: bool, quiet: bool, debug: bool, **given: Any) -> None:
    """Corpus to token shards ahead of training, one slice of it per worker or host.

    \b
    Example:
      nlpstack data tokenize --data sample:abstracts --tokenizer runs/gpt --out tokens
    """
    from nlpstack.prepare import tokenize

    number, _, n = part.partition("/")
    if not (number.isdecimal() and n.isdecimal() and 0 < int(number) <= int(n)):
        raise click.UsageError(f"--slice {part}: expected I/N, I from 1 to N, such as 1/4")
    found = tokenize(paths, part=(int(number), int(n)), note=make_reporter(quiet=quiet).say, **given)
    echo(found, f"{found['out']}: {found['tokens']:,} tokens of {found['documents']:,} documents", as_json=as_json)
