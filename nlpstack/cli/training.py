"""What the commands that train have in common: their options, and what they print."""

from importlib import import_module
from typing import Any

import click

from nlpstack.cli import options as shared

# Data and folder of a run, length, machine, values, and what may happen to a run that stands.
training_options = shared.together(
    click.option("--data", multiple=True, metavar="PATH", help="File, folder, glob or sample:NAME; repeatable."),
    shared.folder_option("--out", "The run folder [default: runs/<recipe>]."),
    click.option("--minutes", type=float, help="Train about this long instead of the recipe's steps."),
    click.option("--seed", type=click.IntRange(0), help="Seed of weights, order and dropout."),
    click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="Products; weights are fp32."),
    shared.machine_options,
    shared.set_option,
    click.option("--resume", is_flag=True, help="Go on with the run that stands in --out, bit for bit."),
    click.option("--inexact", is_flag=True, help="With --resume: go on even if not bit for bit."),
    click.option("--overwrite", is_flag=True, help="Replace the run that stands in --out."),
    click.option("--dry-run", is_flag=True, help="Check everything, do one step, write nothing."),
    shared.output_options,
)


def run_training(stage: str, recipe: str, given: dict[str, Any], flags: dict[str, Any], **chosen: str | None) -> None:
    """Call the function of a stage that trains with what was typed, and print what came back."""
    from nlpstack.job import RunOptions
    from nlpstack.train.runtime import StopSignal, keep_freed_memory

    flags = {
        "data.paths": list(given["data"]) or None,
        **flags,
        **{f"train.{name}": given[name] for name in ("minutes", "seed", "dtype", "device", "threads")},
    }
    keep_freed_memory()
    with StopSignal().installed() as stop:
        options = RunOptions(
            flags={key: value for key, value in flags.items() if value is not None},
            tokenizer=given.get("tokenizer"),
            stop=stop,
            command=shared.typed_command(),
            **{name: given[name] for name in ("model", "dry_run", "inexact")},
        )
        done = getattr(import_module(f"nlpstack.{stage}"), stage)(
            recipe,
            given["overrides"],
            **{name: given[name] for name in ("out", "resume", "overwrite")},
            options=options,
            reporter=shared.make_reporter(quiet=given["quiet"]),
            **chosen,
        )
    if given["as_json"]:
        shared.echo_json(done or {"dry_run": True})
    elif done is not None:
        scores = "  ".join(f"{name} {value:.4f}" for name, value in done.val.items() if value is not None)
        click.echo(f"{done.model}: {done.steps:,} steps, {done.tokens:,} tokens in {done.seconds:.0f} s; val {scores}")
        click.echo(f"weights {done.weights}")
