"""The flags that say how text is chosen, and the Sampling they make."""

import re
from typing import TYPE_CHECKING, Any

import click

from nlpstack.cli.options import Command

if TYPE_CHECKING:
    from nlpstack.decode import Sampling

# Flags for the numbers of Sampling: type, placeholder, help.
_NUMBERS: dict[str, tuple[type, str, str]] = {
    "--max-new-tokens": (int, "N", "Tokens to write at most a prompt.  [default: 128]"),
    "--min-new-tokens": (int, "N", "No end of text before N tokens.  [default: 0]"),
    "--temperature": (float, "T", "Below 1: safer; above: wilder; 0: greedy.  [default: 1]"),
    "--top-k": (int, "K", "Draw from the K likeliest tokens only.  [default: off]"),
    "--top-p": (float, "P", "Draw from the likeliest that reach P together.  [default: off]"),
    "--min-p": (float, "P", "Draw from those at least P times as likely as the likeliest.  [default: off]"),
    "--samples": (int, "N", "Texts a prompt; with --beams, the best ones.  [default: 1]"),
    "--seed": (int, "N", "Another seed, another text.  [default: 0]"),
    "--beams": (int, "N", "Search with N beams instead of drawing.  [default: off]"),
    "--length-penalty": (float, "X", "A beam's score: its log-probability / (new tokens ** X).  [default: 1]"),
    "--repetition-penalty": (float, "X", "A repeated token's logit is divided by X, or times X below 0.  [default: 1]"),
    "--frequency-penalty": (float, "X", "Taken off a token's logit each time it occurred.  [default: 0]"),
    "--presence-penalty": (float, "X", "Taken off a token's logit if it occurred.  [default: 0]"),
    "--no-repeat-ngram": (int, "N", "No N tokens in a row occur twice.  [default: off]"),
}
_PROMPT_HELP = "Whether the prompt counts as text that occurred.  [default: for repetition and n-grams]"


def sampling_options(command: Command) -> Command:
    """One flag for each field of Sampling; all of them reach the command in `options`."""
    several: list[tuple[str, str, str, str]] = [
        ("--stop", "stop", "TEXT", "End before this text; repeatable; taken as it is."),
        ("--force", "forced", "TOKEN", "Begin with these tokens; repeatable."),
        ("--ban", "banned", "TOKEN", "Never choose this token; repeatable."),
        ("--bias", "logit_bias", "TOKEN=X", "Add X to a token's logit; TOKEN: its text, or id:N; repeatable."),
    ]
    command = click.option("--logprobs", is_flag=True, default=None, help="Show each token's plain log-probability.")(
        command
    )
    for flag, name, metavar, text in several:
        command = click.option(flag, name, multiple=True, metavar=metavar, help=text)(command)
    command = click.option("--penalize-prompt/--no-penalize-prompt", default=None, help=_PROMPT_HELP)(command)
    for flag, (kind, metavar, text) in reversed(_NUMBERS.items()):
        command = click.option(flag, type=kind, metavar=metavar, help=text)(command)
    return click.option("--greedy", is_flag=True, default=None, help="Always take the likeliest token, draw nothing.")(
        command
    )


def make_sampling(options: dict[str, Any]) -> tuple["Sampling", set[str]]:
    """The Sampling of a command's flags, and the names of those that were given."""
    from nlpstack.decode import Sampling

    given = {name: value for name, value in options.items() if value not in (None, ())}
    for name in given.keys() & {"banned", "forced"}:
        given[name] = tuple(map(_token, given[name]))
    if "logit_bias" in given:
        given["logit_bias"] = _biases(given["logit_bias"])
    return Sampling(**given), set(given)


def _token(word: str) -> int | str:
    """A token as a flag spells it: id:N, or its text."""
    return int(word[3:]) if re.fullmatch(r"id:[0-9]+", word) else word


def _biases(words: tuple[str, ...]) -> dict[int | str, float]:
    """The tokens and biases of --bias flags."""
    from nlpstack.errors import ConfigError

    biases: dict[int | str, float] = {}
    for word in words:
        name, _, value = word.rpartition("=")
        try:
            bias = float(value)
        except ValueError:
            name = ""
        if not name:
            raise ConfigError(f"--bias {word!r}: expected TOKEN=NUMBER, e.g. 'the=-2.5' or 'id:17=3'")
        token = _token(name)
        if token in biases:
            raise ConfigError(f"--bias {word!r}: {name!r} has a bias already, {biases[token]}; leave out one")
        biases[token] = bias
    return biases
