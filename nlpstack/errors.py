"""What can go wrong through a user's doing; the command line prints each as one line and exits 2."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from itertools import islice


class NlpstackError(Exception):
    """Anything a user can cause and mend; the message says what, where and how to mend it."""

    def __str__(self) -> str:
        """The message as one line that a terminal can show, whatever names and values of files it quotes."""
        text = " ".join(super().__str__().splitlines())
        shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[:2000])
        return shown + "..." * (len(text) > 2000)


class ConfigError(NlpstackError):
    """A recipe, flag or option that cannot be meant."""


class DataError(NlpstackError):
    """Text or labels that cannot be read as they should be."""


class ModelError(NlpstackError):
    """A model, adapter or tokenizer folder that cannot be used."""


class CheckpointError(NlpstackError):
    """A run or its training state that cannot be continued."""


class TrainingError(NlpstackError):
    """A run whose numbers left the finite ones."""


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'x'?` where a known word is close, else nothing."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{prefix}{close[0]}'?" if close else ""


def some(names: Collection[object], most: int = 5) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, islice(names, most))) + more
