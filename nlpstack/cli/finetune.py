"""`nlpstack finetune`."""

from typing import Any

import click

from nlpstack.cli import options as shared


@click.command("finetune")
@click.argument("recipe", required=False, shell_complete=shared.complete_recipes)
@click.option("--task", type=shared.TASKS, help="What the model is to do; without RECIPE, its default recipe.")
@click.option("--lora", is_flag=True, help="Train adapters and what is new; the model itself stays as it is.")
@shared.folder_option("--model", "The model to adapt [default: the newest finished pretraining run under runs/].")
@shared.unknown_labels(help="Validation examples with a label that training lacks: an error, or left out and counted.")
@shared.training_options
def finetune_command(recipe: str | None, task: str | None, lora: bool, **given: Any) -> None:
    """Adapt a pretrained model by a RECIPE (a name or a .toml file), or the default one of a --task.

    \b
    Examples:
      nlpstack finetune --task ner --lora
      nlpstack finetune --task classification --data reviews/ --model runs/bert
      nlpstack finetune pair --set train.epochs=3 --out runs/pairs
    """
    if recipe is None and task is None:
        raise click.UsageError("give a RECIPE or a --task")
    if recipe is not None and lora:
        raise click.UsageError("--lora goes with --task; a RECIPE says itself what adapters it has (lora.rank)")
    unknown = given["unknown_labels"]
    flags = {"task.ignore_unknown": unknown == "ignore" if unknown else None}
    shared.run_training("finetune", recipe or f"{task}{'-lora' * lora}", given, flags, task=task)
