"""`nlpstack fill-mask`: the best tokens for the masks in a text."""

from typing import Any

import click

from nlpstack.cli.options import arguments, echo, folder_option, machine_options, output_options


@click.command("fill-mask")
@click.argument("text", metavar="TEXT")
@folder_option("--model", "A BERT: a run, its model/, or a published model folder.", required=True)
@click.option("--top-k", type=click.IntRange(min=1), default=5, help="Tokens for each mask.")
@machine_options
@output_options
def fill_mask_command(text: str, model: str, top_k: int, as_json: bool, **given: Any) -> None:
    """The likeliest tokens for each mask in TEXT, with their probabilities and the text filled in.

    A mask is written as the model's tokenizer spells it: [MASK], or <mask> for a RoBERTa. Several masks are filled each
    on its own.

    \b
    Example:
      nlpstack fill-mask --model runs/bert "We propose a new [MASK] for this problem."
    """
    from nlpstack.predict import fill_mask

    guesses = fill_mask(model, text, top_k=top_k, **arguments(given))
    found = [{name: getattr(one, name) for name in ("mask", "token", "probability", "id")} for one in guesses]
    width = max(len(_on_a_line(one.token)) for one in guesses)
    lines = [f"{one.probability:.4f}  {_on_a_line(one.token):{width}}  {_on_a_line(one.text)}" for one in guesses]
    blocks = ["\n".join(lines[start : start + top_k]) for start in range(0, len(lines), top_k)]  # one a mask
    echo(found, "\n\n".join(blocks), as_json=as_json)


def _on_a_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")
