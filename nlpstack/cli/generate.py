"""`nlpstack generate`: text from a GPT."""

import sys
from typing import TYPE_CHECKING

import click

from nlpstack.cli.options import DTYPES, echo_json, machine_options, output_options

if TYPE_CHECKING:
    from nlpstack.decode import Sampling
    from nlpstack.generate import GenerationResult


@click.command("generate")
@click.option("--model", required=True, metavar="DIR", help="A run, its model/, or a published model folder.")
@click.option("--prompt", "given", multiple=True, metavar="TEXT", help="A text to go on from; repeatable.")
@click.option("--prompts", "file", metavar="FILE", help="A UTF-8 file with one prompt a line.")
@click.option("--max-new-tokens", type=int, metavar="N", help="Tokens to write at most a prompt.  [default: 128]")
@click.option("--greedy", is_flag=True, default=None, help="Always take the likeliest token, draw nothing.")
@click.option("--temperature", type=float, metavar="T", help="Below 1: safer; above: wilder; 0: greedy.  [default: 1]")
@click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens only.  [default: off]")
@click.option("--top-p", type=float, metavar="P", help="Draw from the likeliest that reach P together.  [default: off]")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable; taken as it is.")
@click.option("--seed", type=int, metavar="N", help="Another seed, another text.  [default: 0]")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Prompts at a time.")
@click.option("--dtype", type=DTYPES, default="fp32", show_default=True, help="Of the weights.")
@machine_options
@output_options
def generate_command(
    model: str,
    given: tuple[str, ...],
    file: str | None,
    batch_size: int,
    device: str | None,
    dtype: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **options: object,
) -> None:
    """Text from a GPT: greedy or drawn, several prompts at a time.

    Without a prompt, a run folder goes on from the prompts of its last validation, any other model from nothing.
    The text goes to standard output, the report to standard error.

    \b
    Example:
      nlpstack generate --model runs/gpt --prompt "First of all," --temperature 0.8 --top-k 40
    """
    from nlpstack.decode import Sampling
    from nlpstack.generate import generate

    set_options = {name: value for name, value in options.items() if value not in (None, ())}
    sampling = Sampling(**set_options)  # type: ignore[arg-type]
    prompts, source = _prompts(model, given, file)
    stream = len(prompts) == 1 and not as_json and sys.stdout.isatty()
    unshown = iter(prompts)  # when streaming: the prompt, until its first text comes

    def show(text: str) -> None:
        click.echo(next(unshown, "") + text, nl=False)

    result = generate(
        model,
        prompts,
        sampling,
        batch_size=batch_size,
        device=device or "auto",
        dtype=dtype,
        threads=threads,
        on_text=show if stream else None,
    )
    if as_json:
        echo_json(_entries(result))
    else:
        click.echo(next(unshown, "") if stream else _as_text(result))
    if not quiet:
        click.echo(_report(result, sampling, set(set_options), source), err=True)


def _prompts(model: str, given: tuple[str, ...], file: str | None) -> tuple[list[str], str]:
    """The prompts, and in words where they come from."""
    from nlpstack.errors import ConfigError
    from nlpstack.generate import default_prompts, read_prompts

    if given and file is not None:
        raise ConfigError("--prompt and --prompts: give one or the other")
    if given:
        return list(given), "--prompt"
    if file is not None:
        return read_prompts(file), file
    prompts = default_prompts(model)
    if prompts == [""]:
        return prompts, "none given; the text starts from nothing"
    return prompts, f"none given; those of the last validation of {model}"


def _entries(result: "GenerationResult") -> list[dict[str, object]]:
    return [
        {"prompt": one.prompt, "text": one.text, "tokens": len(one.tokens), "stopped_by": one.stopped_by}
        for one in result.generations
    ]


def _as_text(result: "GenerationResult") -> str:
    return "\n---\n".join(one.prompt + one.text for one in result.generations)


def _report(result: "GenerationResult", sampling: "Sampling", given: set[str], source: str) -> str:
    """Where the prompts came from, what they were continued with, and how fast."""
    from dataclasses import asdict

    timing, n_slides = result.timing, sum(one.slides for one in result.generations)
    unused = {"greedy", "stop"} | ({"temperature", "top_k", "top_p", "seed"} if sampling.always_likeliest else set())
    options = [
        f"{name} {value}{'' if name in given else ' (default)'}"
        for name, value in asdict(sampling).items()
        if name in given or name not in unused
    ]
    lines = [
        f"prompts: {len(result.generations)} ({source})",
        f"sampling: {', '.join(options)}",
        f"speed: prefill {timing.prefill_tokens:,} tokens, {timing.prefill_rate:,.0f} tokens/s; "
        f"decode {timing.decode_tokens:,} tokens, {timing.decode_rate:,.0f} tokens/s; "
        f"{timing.seconds:.1f} s on {result.device} in {result.dtype}",
    ]
    if n_slides:
        lines.append(f"context: full {n_slides:,} times; each time the text went on from the last half of it")
    return "\n".join(lines)
