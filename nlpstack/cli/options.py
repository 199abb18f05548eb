"""Options that several commands share, and what they write with."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from nlpstack.train.log import Reporter

Command = TypeVar("Command", bound=Callable[..., Any])
DEVICES = click.Choice(["auto", "cpu", "cuda", "mps"])
DTYPES = click.Choice(["fp32", "bf16", "fp16"])


def output_options(command: Command) -> Command:
    """--json, --quiet and --debug."""
    command = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(command)
    command = click.option("--quiet", is_flag=True, help="Only results and errors.")(command)
    return click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout, all else on stderr.")(
        command
    )


def machine_options(command: Command) -> Command:
    """--device and --threads."""
    command = click.option("--threads", type=click.IntRange(1), help="Threads for compute [default: the cores].")(
        command
    )
    return click.option("--device", type=DEVICES, help="Where to compute [default: auto].")(command)


def set_option(command: Command) -> Command:
    """--set, which may be given often."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="One value, e.g. optim.lr=1e-4; repeatable.",
    )(command)


def complete_folders(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """What the shell offers for an option that takes a folder."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def complete_recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Recipes, by their short names unless a stage is written; of the command's own stage where it has one."""
    from click.shell_completion import CompletionItem

    from nlpstack.recipes import STAGES, list_recipes

    recipes = list_recipes(context.info_name if context.info_name in STAGES else None)
    names = [recipe.full_name if "/" in incomplete else recipe.name for recipe in recipes]
    found = [
        CompletionItem(name, help=recipe.summary.split("\n")[0])
        for name, recipe in zip(names, recipes, strict=True)
        if name.startswith(incomplete)
    ]
    return found or [CompletionItem(incomplete, type="file")]


def complete_models_and_recipes(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Recipes where one begins as what is written does, else folders."""
    found = complete_recipes(context, parameter, incomplete)
    return found if found[0].type == "plain" else complete_folders(context, parameter, incomplete)


def make_reporter(*, quiet: bool) -> "Reporter":
    """Lines on stderr, or none."""
    from nlpstack.train.log import Console, Silent

    return Silent() if quiet else Console(sys.stderr)


def echo_json(value: object) -> None:
    """One JSON value on one line of stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def typed_command() -> str:
    """The command as it was typed, for a run's record."""
    from shlex import join

    return join(["nlpstack", *sys.argv[1:]])
