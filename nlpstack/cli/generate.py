"""`nlpstack generate`: text from a GPT."""

import sys
from typing import TYPE_CHECKING

import click

from nlpstack.cli.options import DTYPES, complete_folders, echo_json, machine_options, output_options
from nlpstack.cli.sampling import make_sampling, sampling_options

if TYPE_CHECKING:
    from nlpstack.decode import Generation, Sampling
    from nlpstack.generate import GenerationResult


@click.command("generate")
@click.option(
    "--model",
    required=True,
    metavar="DIR",
    shell_complete=complete_folders,
    help="A run, its model/, or a published model folder.",
)
@click.option("--prompt", "given", multiple=True, metavar="TEXT", help="A text to go on from; repeatable.")
@click.option("--prompts", "file", metavar="FILE", help="A UTF-8 file with one prompt a line.")
@sampling_options
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Texts at a time.")
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
    """Text from a GPT: greedy, drawn or by beam search, several prompts at a time.

    Without a prompt, a run folder goes on from the prompts of its last validation, any other model from nothing.
    The text goes to standard output, the report to standard error.

    \b
    Example:
      nlpstack generate --model runs/gpt --prompt "First of all," --temperature 0.8 --top-k 40
    """
    from nlpstack.generate import generate

    sampling, set_options = make_sampling(options)
    prompts, source = _prompts(model, given, file)
    stream = len(prompts) == sampling.samples == 1 and not as_json and sys.stdout.isatty()
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
        echo_json([_entry(one, sampling) for one in result.generations])
    else:
        click.echo(next(unshown, "") + _logprob_lines(result.generations[0]) if stream else _as_text(result, sampling))
    if not quiet:
        click.echo(_report(result, sampling, set_options, f"{len(prompts)} ({source})"), err=True)


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


def _entry(one: "Generation", sampling: "Sampling") -> dict[str, object]:
    """What --json says of a text; of several a prompt which one it is, of a beam its score."""
    entry: dict[str, object] = {"prompt": one.prompt}
    if sampling.samples > 1:
        entry["sample"] = one.sample
    entry |= {"text": one.text, "tokens": len(one.tokens), "stopped_by": one.stopped_by}
    if one.score is not None:
        entry["score"] = one.score
    if one.logprobs is not None:
        parts = zip(one.tokens, one.pieces, one.logprobs, strict=True)
        entry["logprobs"] = [{"id": token, "text": text, "logprob": logprob} for token, text, logprob in parts]
    return entry


def _as_text(result: "GenerationResult", sampling: "Sampling") -> str:
    """Each text behind its prompt; several of one prompt under headings."""
    texts = [one.prompt + one.text + _logprob_lines(one) for one in result.generations]
    if sampling.samples == 1:
        return "\n---\n".join(texts)
    headings = []
    for n, one in enumerate(result.generations):
        score = "" if one.score is None else f", score {one.score:.4f}"
        headings.append(f"--- prompt {n // sampling.samples + 1}, text {one.sample + 1}{score}")
    return "\n".join(f"{heading}\n{text}" for heading, text in zip(headings, texts, strict=True))


def _logprob_lines(one: "Generation") -> str:
    """A line for each token of a text: its log-probability, id and text."""
    if one.logprobs is None:
        return ""
    parts = zip(one.logprobs, one.tokens, one.pieces, strict=True)
    return "".join(f"\n{logprob:10.4f} {token:7} {text!r}" for logprob, token, text in parts)


def _report(result: "GenerationResult", sampling: "Sampling", given: set[str], prompts: str) -> str:
    """Where the prompts came from, what they were continued with, and how fast."""
    from dataclasses import asdict

    timing, n_slides = result.timing, sum(one.slides for one in result.generations)
    used = {"max_new_tokens"}
    if sampling.beams > 1:
        used |= {"length_penalty"}
    elif not sampling.always_likeliest:
        used |= {"temperature", "top_k", "top_p", "seed"}
    elif not sampling.greedy:
        used |= {"temperature"}
    options = [
        f"{name} {value}{'' if name in given else ' (default)'}"
        for name, value in asdict(sampling).items()
        if name in given or name in used
    ]
    lines = [
        f"prompts: {prompts}",
        f"sampling: {', '.join(options)}",
        f"speed: prefill {timing.prefill_tokens:,} tokens, {timing.prefill_rate:,.0f} tokens/s; "
        f"decode {timing.decode_tokens:,} tokens, {timing.decode_rate:,.0f} tokens/s; "
        f"{timing.seconds:.1f} s on {result.device} in {result.dtype}",
    ]
    if n_slides:
        lines.append(f"context: full {n_slides:,} times; each time the text went on from the last half of it")
    return "\n".join(lines)
