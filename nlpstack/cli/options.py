"""What several commands share: options, how a training is called, and what is written with."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial, reduce
from importlib import import_module
from shlex import join
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from nlpstack.train.run import Reporter

Option = Callable[[Any], Any]  # as click.option makes it: it decorates a command
DTYPES = click.Choice(["fp32", "bf16", "fp16"])
TASKS = click.Choice(["classification", "ner", "generation"])


def together(*options: Option) -> Option:
    """Several options as one, which --help lists in this order."""
    return lambda command: reduce(lambda done, option: option(done), reversed(options), command)


output_options = together(
    click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout, all else on stderr."),
    click.option("--quiet", is_flag=True, help="Only results and errors."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)
machine_options = together(
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where it runs [default: auto]."),
    click.option("--threads", type=click.IntRange(1), help="Threads for compute [default: the cores]."),
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="One value, e.g. optim.lr=1e-4; repeatable."
)


def complete_folders(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What the shell offers for an option that takes a folder."""
    return [CompletionItem(incomplete, type="dir")]


def complete_recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipes, by their short names unless a stage is written; of the command's own stage where it has one."""
    from nlpstack.recipes import STAGES, list_recipes

    recipes = list_recipes(context.info_name if context.info_name in STAGES else None)
    named = [(one.full_name if "/" in incomplete else one.name, one.summary) for one in recipes]
    items = [CompletionItem(name, help=says.split("\n")[0]) for name, says in named if name.startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="file")]


def complete_targets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipes where one begins as what is written does, else folders."""
    found = complete_recipes(context, parameter, incomplete)
    return found if found[0].type == "plain" else complete_folders(context, parameter, incomplete)


def folder_option(name: str, help_text: str, *, required: bool = False) -> Option:
    """An option that takes a folder, which the shell completes."""
    return click.option(name, required=required, metavar="DIR", shell_complete=complete_folders, help=help_text)


model_option = folder_option("--model", "A run, its model/, an adapter, or a published model folder.", required=True)
base_option = folder_option("--base", "An adapter's base model, where it has moved.")
unknown_labels = partial(click.option, "--unknown-labels", type=click.Choice(["error", "ignore"]))
# Data and folder of a run, length, machine, values, and what may happen to a run that stands.
training_options = together(
    click.option("--data", multiple=True, metavar="PATH", help="File, folder, glob or sample:NAME; repeatable."),
    folder_option("--out", "The run folder [default: runs/<recipe>]."),
    click.option("--minutes", type=float, help="Train about this long instead of the recipe's steps."),
    click.option("--seed", type=click.IntRange(0), help="Seed of weights, order and dropout."),
    click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="Products; weights are fp32."),
    machine_options,
    set_option,
    click.option("--resume", is_flag=True, help="Go on with the run that stands in --out, bit for bit."),
    click.option("--inexact", is_flag=True, help="With --resume: go on even if not bit for bit."),
    click.option("--overwrite", is_flag=True, help="Replace the run that stands in --out."),
    click.option("--dry-run", is_flag=True, help="Check everything, do one step, write nothing."),
    output_options,
)


def make_reporter(*, quiet: bool) -> "Reporter":
    """Lines on stderr, or none."""
    from nlpstack.train.run import Reporter

    return Reporter(None if quiet else sys.stderr)


def echo_json(value: object) -> None:
    """One JSON value on one line of stdout; a dataclass as the object of its fields."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, default=asdict))


def echo(value: object, plain: str | bytes, *, as_json: bool, nl: bool = True) -> None:
    """What a command found, for a program or for a reader."""
    if as_json:
        echo_json(value)
    else:
        click.echo(plain, nl=nl)


def echo_table(rows: Sequence[Sequence[Any]]) -> None:
    """Rows under a header, on stdout: each one line, in a pipe and on any terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for place, title in enumerate(rows[0]):
        left = place == 0 or not any(str(row[place])[:1].isdigit() for row in rows[1:])
        table.add_column(str(title), justify="left" if left else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*map(str, row))
    Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=10_000).print(table)


def arguments(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """These flags, and where to compute, for a function whose arguments have their names."""
    return {"device": given["device"] or "auto", "threads": given["threads"]} | {name: given[name] for name in names}


def typed_command() -> str:
    """The command as it was typed, for a run's record."""
    return join(["nlpstack", *sys.argv[1:]])


def run_training(stage: str, recipe: str, given: dict[str, Any], flags: dict[str, Any], **chosen: Any) -> None:
    """Call the function of a stage that trains with what was typed, and print what came back."""
    from nlpstack.job import RunOptions
    from nlpstack.train.runtime import keep_freed_memory

    flags = {"data.paths": list(given["data"]) or None, **flags}
    flags |= {f"train.{name}": given[name] for name in ("minutes", "seed", "dtype", "device", "threads")}
    flags = {key: value for key, value in flags.items() if value is not None}
    asked: dict[str, Any] = {name: given.get(name) for name in ("model", "tokenizer", "dry_run", "inexact")}
    chosen |= {name: given[name] for name in ("out", "resume", "overwrite")}
    keep_freed_memory()
    options = RunOptions(flags=flags, stop=click.get_current_context().obj, command=typed_command(), **asked)
    train, reporter = getattr(import_module(f"nlpstack.{stage}"), stage), make_reporter(quiet=given["quiet"])
    done = train(recipe, given["overrides"], options=options, reporter=reporter, **chosen)
    if given["as_json"]:
        echo_json(done or {"dry_run": True})
    elif done is not None:
        scores = "  ".join(f"{name} {value:.4f}" for name, value in done.val.items() if value is not None)
        click.echo(f"{done.model}: {done.steps:,} steps, {done.tokens:,} tokens in {done.seconds:.0f} s; val {scores}")
        click.echo(f"weights {done.weights}")
