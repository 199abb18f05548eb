"""`nlpstack merge`."""

from typing import Any

import click

from nlpstack.cli.options import base_option, complete_folders, echo, make_reporter, output_options


@click.command("merge")
@click.argument("adapter", metavar="ADAPTER", shell_complete=complete_folders)
@click.option("--out", required=True, metavar="DIR", help="The merged model's folder.")
@base_option
@click.option("--tolerance", type=float, default=1e-4, help="Largest difference of logits allowed.")
@output_options
def merge_command(adapter: str, out: str, base: str | None, tolerance: float, **given: Any) -> None:
    """Fold an ADAPTER (a LoRA run or an adapter folder) into its base, in fp32, and write a plain model folder.

    \b
    Example:
      nlpstack merge runs/ner-lora --out merged
    """
    from nlpstack.merge import merge

    result = merge(adapter, out, base=base, tolerance=tolerance, note=make_reporter(quiet=given["quiet"]).say)
    merged = f"{result.layers} layers merged; the largest logit difference is {result.difference:.2e}"
    echo(result, f"{result.out}: {merged}", as_json=given["as_json"])
