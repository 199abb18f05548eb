"""`nlpstack compare`."""

import click

from nlpstack.cli import options as shared

_NUMBERS = ("first", "second", "difference", "low", "high")


@click.command("compare")
@click.argument("first", metavar="RESULT", shell_complete=shared.complete_folders)
@click.argument("second", metavar="RESULT", shell_complete=shared.complete_folders)
@shared.output_options
def compare_command(first: str, second: str, as_json: bool, quiet: bool, debug: bool) -> None:
    """Two evaluations side by side, with paired significance; refuses what is not comparable.

    RESULT is a run, its results.json, or what eval --save wrote.

    \b
    Example:
      nlpstack compare runs/ner runs/ner-lora
    """
    from nlpstack.compare import compare

    rows = compare(first, second)
    if as_json:
        shared.echo_json(rows)
        return
    table = [("metric", first, second, "difference", "95 % interval", "p", "better")]
    for row in rows:
        if "refused" in row:
            table.append((row["metric"], "not compared:", row["refused"], "", "", "", ""))
            continue
        then, now, change, *ends = ("-" if row[k] is None else f"{row[k]:+.4f}" for k in _NUMBERS)
        p = "-" if row["p"] is None else f"{row['p']:.3f}"
        table.append((row["metric"], then.strip("+"), now.strip("+"), change, " to ".join(ends), p, row["better"]))
    shared.echo_table(table)
