"""`nlpstack generate`: text from a GPT."""

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nlpstack.cli import options as shared
from nlpstack.errors import ConfigError, DataError
from nlpstack.files import decode_utf8

if TYPE_CHECKING:
    from nlpstack.decode import Generation, Sampling
    from nlpstack.generate import GenerationResult


_KINDS = {"bool": bool, "int": int, "float": float, "str": str}
_OPTIONS = Path(__file__).parents[1] / "decode" / "sampling.toml"  # its package would import torch


def _option(name: str, said: dict[str, str]) -> shared.Option:
    """The option of a field of Sampling: it may be left out, or repeated if it is a text."""
    flag, kind = said.get("flag", f"--{name.replace('_', '-')}"), _KINDS[said["kind"]]
    more: dict[str, Any] = {"is_flag": kind is bool, "multiple": kind is str, "help": said["help"]}
    return click.option(flag, name, type=kind, metavar=said.get("metavar"), default=None, **more)


sampling_options = shared.together(*(_option(*one) for one in tomllib.loads(_OPTIONS.read_text("utf-8")).items()))


@click.command("generate")
@shared.model_option
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A text to go on from; repeatable.")
@click.option("--prompts", "file", metavar="FILE", help="A UTF-8 file with one prompt a line.")
@click.option("--chat", is_flag=True, help="Answer as an assistant: a prompt is a question; without one, talk on.")
@sampling_options
@click.option("--batch-size", type=click.IntRange(min=1), default=16, help="Texts at a time.")
@click.option("--dtype", type=shared.DTYPES, default="fp32", help="Of the weights.")
@shared.machine_options
@shared.output_options
def generate_command(model: str, prompts: tuple[str, ...], file: str | None, chat: bool, **given: Any) -> None:
    """Text from a GPT: greedy, drawn or by beam search, several prompts at a time.

    Without a prompt, a run folder goes on from the prompts of its last validation, any other model from nothing.
    The text goes to standard output, the report to standard error. With --chat and no prompt, each line of standard
    input is answered, with all that was said before in mind, until it ends.

    \b
    Example:
      nlpstack generate --model runs/gpt --prompt "First of all," --temperature 0.8 --top-k 40
    """
    from nlpstack.generate import generate

    sampling, chosen = make_sampling(given)
    if chat and not prompts and file is None:
        return _converse(model, sampling, given)
    texts, source = _prompts(model, prompts, file)
    stream = len(texts) == sampling.samples == 1 and not given["as_json"] and sys.stdout.isatty()
    end = "\n" * chat
    unshown = iter([text + end for text in texts])  # when streaming: the prompt, until its first text comes

    def show(text: str) -> None:
        click.echo(next(unshown, "") + text, nl=False)

    where = shared.arguments(given, "batch_size", "dtype")
    asked = [[("user", text)] for text in texts] if chat else texts
    result = generate(model, asked, sampling, on_text=show if stream else None, **where)
    plain = next(unshown, "") + _logprob_lines(result.generations[0]) if stream else _as_text(result, sampling, end)
    shared.echo([_entry(one, sampling) for one in result.generations], plain, as_json=given["as_json"])
    if not given["quiet"]:
        click.echo(_report(result, sampling, chosen, f"{len(texts)} ({source})"), err=True)


def _converse(model: str, sampling: "Sampling", given: dict[str, Any]) -> None:
    """Answer standard input line by line; what no longer fits the context is forgotten, and that is said."""
    from nlpstack.generate import generate
    from nlpstack.start import open_model
    from nlpstack.tokenizer.chat import ASSISTANT, Chat

    if sampling.samples > 1:
        raise ConfigError(f"--samples {sampling.samples}: a conversation goes on with one text; leave it out")
    ready, name = open_model(model, device=given["device"] or "auto", dtype=given["dtype"])
    chat, how = Chat(ready.tokenizer, name), {"threads": given["threads"], "dtype": given["dtype"]}
    show: Callable[[str], None] | None = None if given["as_json"] else partial(click.echo, nl=False)
    said: list[tuple[str, str]] = []
    for line in _lines():
        said, whole = [*said, ("user", line)], len(said) + 1
        while len(said) > 2 and len(chat.prompts([said])[0]) > ready.config.max_seq_len:
            del said[:2]
        if len(said) < whole:
            click.echo("(the conversation is longer than the context: its first turns are left out)", err=True)
        (one,) = generate(ready, [said], sampling, on_text=show, **how).generations
        shared.echo(_entry(one, sampling), _logprob_lines(one), as_json=given["as_json"])
        said.append((ASSISTANT, one.text.strip()))


def _lines() -> Iterator[str]:
    """Those of standard input that are not empty; in a terminal a mark asks for each."""
    while True:
        click.echo("> " * sys.stdin.isatty(), nl=False, err=True)
        if not (line := sys.stdin.buffer.readline()):
            return
        if text := decode_utf8(line, "standard input", DataError).strip():
            yield text


def make_sampling(given: dict[str, Any]) -> tuple["Sampling", set[str]]:
    """The Sampling of a command's flags, and the names of those that were given."""
    from nlpstack.decode import Sampling

    fields = Sampling.__dataclass_fields__
    chosen = {name: value for name, value in given.items() if name in fields and value not in (None, ())}
    for name in {"banned", "forced"} & chosen.keys():
        chosen[name] = tuple(map(_token, chosen[name]))
    if "logit_bias" in chosen:
        chosen["logit_bias"] = _biases(chosen["logit_bias"])
    return Sampling(**chosen), set(chosen)


def _token(word: str) -> int | str:
    return int(word[3:]) if re.fullmatch(r"id:[0-9]+", word) else word


def _biases(words: tuple[str, ...]) -> dict[int | str, float]:
    biases: dict[int | str, float] = {}
    for word in words:
        name, _, value = word.rpartition("=")
        try:
            bias = float(value if name else "")
        except ValueError as error:
            raise ConfigError(f"--bias {word!r}: expected TOKEN=NUMBER, e.g. 'the=-2.5' or 'id:17=3'") from error
        if (token := _token(name)) in biases:
            raise ConfigError(f"--bias {word!r}: {name!r} has a bias already, {biases[token]}; leave out one")
        biases[token] = bias
    return biases


def _prompts(model: str, given: tuple[str, ...], file: str | None) -> tuple[list[str], str]:
    from nlpstack.generate import default_prompts, read_prompts

    if given and file is not None:
        raise ConfigError("--prompt and --prompts: give one or the other")
    if given:
        return list(given), "--prompt"
    if file is not None:
        return read_prompts(file), file
    prompts = default_prompts(model)
    source = "the text starts from nothing" if prompts == [""] else f"those of the last validation of {model}"
    return prompts, f"none given; {source}"


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


def _as_text(result: "GenerationResult", sampling: "Sampling", end: str) -> str:
    """Each text behind its prompt and this `end`; several of one prompt under headings."""
    lines = []
    for n, one in enumerate(result.generations):
        if sampling.samples > 1:
            score = "" if one.score is None else f", score {one.score:.4f}"
            lines.append(f"--- prompt {n // sampling.samples + 1}, text {one.sample + 1}{score}")
        elif n:
            lines.append("---")
        lines.append(one.prompt + end + one.text + _logprob_lines(one))
    return "\n".join(lines)


def _logprob_lines(one: "Generation") -> str:
    """A line for each token of a text: its log-probability, id and text."""
    if one.logprobs is None:
        return ""
    parts = zip(one.logprobs, one.tokens, one.pieces, strict=True)
    return "".join(f"\n{logprob:10.4f} {token:7} {text!r}" for logprob, token, text in parts)


def _report(result: "GenerationResult", sampling: "Sampling", given: set[str], prompts: str) -> str:
    timing, n_slides = result.timing, sum(one.slides for one in result.generations)
    of_drawing = set() if sampling.always_likeliest else {"temperature", "top_k", "top_p", "seed"}
    shown = {"max_new_tokens", *given, *({"length_penalty"} if sampling.beams > 1 else of_drawing)}
    chosen = {name: value for name, value in asdict(sampling).items() if name in shown}
    options = [f"{name} {value}{' (default)' * (name not in given)}" for name, value in chosen.items()]
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
