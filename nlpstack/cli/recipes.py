"""`nlpstack recipes`."""

import click

from nlpstack.cli.options import complete_recipes, echo_json, output_options


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
        if as_json:
            echo_json(text)
        else:
            click.echo(text, nl=False)
        return
    recipes = list_recipes()
    if as_json:
        echo_json([{"name": r.name, "stage": r.stage, "summary": r.summary.split("\n")[0]} for r in recipes])
        return
    width = max(len(recipe.full_name) for recipe in recipes)
    for recipe in recipes:
        first_line = recipe.summary.split("\n")[0]
        click.echo(f"{recipe.full_name:<{width}}  {first_line}")
