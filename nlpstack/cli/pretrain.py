"""`nlpstack pretrain`."""

from typing import Any

import click

from nlpstack.cli.options import (
    complete_folders,
    complete_recipes,
    echo_json,
    machine_options,
    make_reporter,
    output_options,
    set_option,
    typed_command,
)


@click.command("pretrain")
@click.argument("recipe", required=False, shell_complete=complete_recipes)
@click.option(
    "--arch", type=click.Choice(["gpt", "bert"]), help="The architecture; without RECIPE, its default recipe."
)
@click.option("--data", multiple=True, metavar="PATH", help="File, folder, glob or sample:NAME; repeatable.")
@click.option("--documents", type=click.Choice(["files", "paragraphs"]), help="What a document is in .txt files.")
@click.option("--out", metavar="DIR", shell_complete=complete_folders, help="The run folder [default: runs/<recipe>].")
@click.option(
    "--tokenizer", metavar="DIR", shell_complete=complete_folders, help="Use this tokenizer instead of training one."
)
@click.option(
    "--model",
    metavar="DIR",
    shell_complete=complete_folders,
    help="Go on from this model, with its tokenizer, on new text.",
)
@click.option("--minutes", type=float, help="Train about this long instead of the recipe's steps.")
@click.option("--seed", type=click.IntRange(0), help="Seed of weights, order and dropout.")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="Products; weights are fp32.")
@machine_options
@set_option
@click.option("--resume", is_flag=True, help="Go on with the run that stands in --out, bit for bit.")
@click.option("--inexact", is_flag=True, help="With --resume: go on even if not bit for bit.")
@click.option("--overwrite", is_flag=True, help="Replace the run that stands in --out.")
@click.option("--dry-run", is_flag=True, help="Check everything, do one step, write nothing.")
@output_options
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
    from nlpstack.job import RunOptions
    from nlpstack.pretrain import pretrain
    from nlpstack.train.runtime import StopSignal, keep_freed_memory

    flags = {
        "data.paths": list(given["data"]) or None,
        "data.documents": given["documents"],
        **{f"train.{name}": given[name] for name in ("minutes", "seed", "dtype", "device", "threads")},
    }
    keep_freed_memory()
    with StopSignal().installed() as stop:
        options = RunOptions(
            flags={key: value for key, value in flags.items() if value is not None},
            model=given["model"],
            tokenizer=given["tokenizer"],
            dry_run=given["dry_run"],
            inexact=given["inexact"],
            stop=stop,
            command=typed_command(),
        )
        result = pretrain(
            recipe or str(arch),
            given["overrides"],
            arch=arch,
            out=given["out"],
            resume=given["resume"],
            overwrite=given["overwrite"],
            options=options,
            reporter=make_reporter(quiet=given["quiet"]),
        )
    if result is None:
        if given["as_json"]:
            echo_json({"dry_run": True})
        return
    from dataclasses import asdict

    if given["as_json"]:
        echo_json(asdict(result))
        return
    scores = "  ".join(f"{name} {value:.4f}" for name, value in result.val.items() if value is not None)
    click.echo(
        f"{result.model}: {result.steps:,} steps, {result.tokens:,} tokens in {result.seconds:.0f} s; val {scores}"
    )
    click.echo(f"weights {result.weights}")
