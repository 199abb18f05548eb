"""`nlpstack recipes`."""

import click

from nlpstack.cli.options import complete_recipes, echo, output_options


@click.command("recipes")
@click.argument("name", required=False, shell_complete=complete_recipes)
@output_options
def recipes_command(name: str | None, as_json: bool, quiet: bool, debug: bool) -> None:
    """List the recipes, or print one.

    \b
    Example:
      nlpstack recipes gpt
    """
    from nlpstack.recipes import find_recipe, list_recipes

    if name is not None:
        text = find_recipe(name).read_text(encoding="utf-8")
        echo(text, text, as_json=as_json, nl=False)
        return
    recipes = list_recipes()
    found = [{"name": one.name, "stage": one.stage, "summary": one.summary.split("\n")[0]} for one in recipes]
    width = max(len(one.full_name) for one in recipes)
    lines = [f"{one.full_name:<{width}}  {row['summary']}" for one, row in zip(recipes, found, strict=True)]
    echo(found, "\n".join(lines), as_json=as_json)
