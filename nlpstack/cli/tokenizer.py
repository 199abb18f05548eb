"""`nlpstack tokenizer train|encode|decode|inspect`."""

import sys
from functools import partial
from typing import Any

import click

from nlpstack.cli.options import complete_folders, echo, folder_option, make_reporter, output_options
from nlpstack.errors import DataError
from nlpstack.files import decode_utf8

tokenizer_option = partial(folder_option, "--tokenizer", "A tokenizer's, model's or run's folder.")


@click.group("tokenizer")
def tokenizer_command() -> None:
    """Train and use tokenizers.

    \b
    Example:
      nlpstack tokenizer train --data my.txt --vocab-size 8000 --out tokenizers/mine
    """


@tokenizer_command.command("train")
@click.option("--data", required=True, multiple=True, metavar="PATH", help="File, folder, glob or sample:NAME.")
@click.option("--vocab-size", type=int, help="Pieces in all [default: 8192; char: every character].")
@click.option("--kind", type=click.Choice(["unigram", "bpe", "char"]), default="unigram")
@folder_option("--out", "A new folder.", required=True)
@click.option("--overwrite", is_flag=True, help="Replace the tokenizer that stands in --out.")
@output_options
def train_command(data: tuple[str, ...], out: str, **given: Any) -> None:
    """Train a SentencePiece tokenizer with byte fallback on text.

    \b
    Example:
      nlpstack tokenizer train --data sample:shakespeare --vocab-size 2000 --kind bpe --out tokenizers/bard
    """
    from nlpstack.prepare import train_tokenizer_on

    kind, note = given["kind"], make_reporter(quiet=given["quiet"]).say
    values = {"kind": kind, "vocab_size": given["vocab_size"]}
    tokenizer = train_tokenizer_on(data, values, out, overwrite=given["overwrite"], note=note)
    found = {"out": out, "vocab_size": tokenizer.vocab_size, "kind": kind, "hash": tokenizer.hash}
    echo(found, f"{out}: {kind}, {tokenizer.vocab_size:,} pieces, hash {tokenizer.hash[:12]}", as_json=given["as_json"])


@tokenizer_command.command("encode")
@tokenizer_option(required=True)
@output_options
def encode_command(tokenizer: str, as_json: bool, quiet: bool, debug: bool) -> None:
    """The ids of all of stdin as one text.

    \b
    Example:
      printf 'To be' | nlpstack tokenizer encode --tokenizer runs/gpt
    """
    from nlpstack.tokenizer import load_tokenizer

    ids = load_tokenizer(tokenizer).encode(decode_utf8(sys.stdin.buffer.read(), "standard input", DataError))
    echo({"ids": ids}, " ".join(map(str, ids)), as_json=as_json)


@tokenizer_command.command("decode")
@tokenizer_option(required=True)
@output_options
def decode_command(tokenizer: str, as_json: bool, quiet: bool, debug: bool) -> None:
    """The text of the ids on stdin, separated by white space (or a JSON list, or an object with "ids").

    \b
    Example:
      echo 263 264 | nlpstack tokenizer decode --tokenizer runs/gpt
    """
    from nlpstack.prepare import parse_ids
    from nlpstack.tokenizer import load_tokenizer

    found = load_tokenizer(tokenizer)
    typed = decode_utf8(sys.stdin.buffer.read(), "standard input", DataError)
    text = found.decode(parse_ids(typed, found.vocab_size))
    # As bytes: whatever the terminal speaks, they are the text's.
    echo({"text": text}, text.encode("utf-8"), as_json=as_json, nl=False)


@tokenizer_command.command("inspect")
@click.argument("folder", required=False, shell_complete=complete_folders)
@tokenizer_option()
@click.option("--text", help="Show how this text is cut.")
@output_options
def inspect_command(folder: str | None, tokenizer: str | None, text: str | None, as_json: bool, **_: object) -> None:
    """What a tokenizer holds, and how it cuts a text.

    \b
    Example:
      nlpstack tokenizer inspect --tokenizer runs/gpt --text "To be, or not"
    """
    from nlpstack.prepare import describe_tokenizer

    if (where := tokenizer or folder) is None:
        raise click.UsageError("give the tokenizer with --tokenizer DIR")
    found = describe_tokenizer(where, text)
    echo(found, "\n".join(f"{name}: {value}" for name, value in found.items()), as_json=as_json)
