"""`nlpstack attention`: who looks at whom in a text."""

from typing import Any

import click

from nlpstack.cli.options import DTYPES, arguments, echo, machine_options, model_option, output_options


@click.command("attention")
@click.argument("text", metavar="TEXT")
@model_option
@click.option("--out", required=True, metavar="FILE", help="FILE.html or FILE.png; one that stands there is replaced.")
@click.option("--layer", type=int, metavar="N", help="This layer, counted from 0.  [default: all]")
@click.option("--head", type=int, metavar="N", help="This head, counted from 0.  [default: all]")
@click.option("--dtype", type=DTYPES, default="fp32", help="Of the weights.")
@machine_options
@output_options
def attention_command(text: str, model: str, out: str, **given: Any) -> None:
    """Draw the attention pattern of a layer and head: how much each token of TEXT takes of the others.

    FILE.html is a page for any browser that holds every layer and head, the given ones chosen at first; it needs no
    network. FILE.png is a picture of what is given: one head, all heads of a layer, or every head of every layer; it
    needs matplotlib (pip install 'nlpstack[report]').

    \b
    Examples:
      nlpstack attention --model runs/gpt "To be, or not to be" --out attention.html
      nlpstack attention --model runs/gpt "To be, or not to be" --out head.png --layer 2 --head 0
    """
    from nlpstack.attention import attention

    result = attention(model, text, out, **arguments(given, "layer", "head", "dtype"))
    layers, heads = (
        f"{what} {numbers[0]}" if len(numbers) == 1 else f"{what}s {numbers[0]} to {numbers[-1]}"
        for what, numbers in (("layer", result.layers), ("head", result.heads))
    )
    echo(result, f"{result.out}: {layers}, {heads}, {len(result.tokens):,} tokens", as_json=given["as_json"])
