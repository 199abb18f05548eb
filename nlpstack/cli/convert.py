"""`nlpstack convert`."""

from typing import Any

import click

from nlpstack.cli.options import complete_folders, echo, output_options


@click.command("convert")
@click.argument("source", metavar="FILE|DIR", shell_complete=complete_folders)
@click.option("--out", required=True, metavar="DIR", help="The folder to write.")
@output_options
def convert_command(source: str, out: str, **given: Any) -> None:
    """Write the model of a .gguf file, or of pickled weights (.bin, .pt), as a plain model folder.

    Pickles are read without running any code in them; what holds more than tensors is refused.

    \b
    Example:
      nlpstack convert pytorch_model.bin --out model
    """
    from nlpstack.convert import convert

    result = convert(source, out)
    echo(result, f"{result.out}: {result.parameters:,} parameters, from {result.form}", as_json=given["as_json"])
