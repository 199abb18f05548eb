"""`nlpstack pretrain`."""

from typing import Any

import click

from nlpstack.cli.options import complete_recipes, folder_option, run_training, training_options


@click.command("pretrain")
@click.argument("recipe", required=False, shell_complete=complete_recipes)
@click.option("--arch", type=click.Choice(["gpt", "bert"]), help="The architecture; without RECIPE its default recipe.")
@click.option("--documents", type=click.Choice(["files", "paragraphs"]), help="What a document is in .txt files.")
@folder_option("--tokenizer", "Use this tokenizer instead of training one.")
@folder_option("--model", "Go on from this model, with its tokenizer, on new text.")
@training_options
def pretrain_command(recipe: str | None, arch: str | None, **given: Any) -> None:
    """Train a model from raw text by a RECIPE (a name or a .toml file; see: nlpstack recipes).

    Trains a tokenizer if none is given, tokenizes, trains, and writes a model folder that transformers opens.

    \b
    Examples:
      nlpstack pretrain --arch gpt
      nlpstack pretrain gpt --data my.txt --out runs/mine --minutes 10
      nlpstack pretrain gpt --set model.dim=384 --set optim.lr=5e-4 --out runs/wide
    """
    if recipe is None and arch is None:
        raise click.UsageError("give a RECIPE or --arch gpt")
    run_training("pretrain", recipe or str(arch), given, {"data.documents": given["documents"]}, arch=arch)
