"""Chat templates rendered in a process of its own, which chat.py starts: it may read its input, and has its limits."""

import codecs
import json
import resource
import sys
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import jinja2.debug
from jinja2.ext import Extension
from jinja2.nodes import Scope
from jinja2.sandbox import ImmutableSandboxedEnvironment

codecs.lookup("unicode-escape")  # what templates need has to be loaded now: later no file can be opened
# Bytes of addresses, files that are open, seconds of work, the first two of which leave a way to nothing but an answer.
LIMITS = {resource.RLIMIT_AS: 2**31, resource.RLIMIT_NOFILE: 0, resource.RLIMIT_CPU: 60}
LONGEST = 2**22  # characters of a text


class _Generation(Extension):
    """The mark that some templates put around what the assistant says, which is written as any other text."""

    tags = {"generation"}  # noqa: RUF012 - as the library declares it

    def parse(self, parser: Any) -> Scope:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _texts(template: str, conversations: list[dict[str, Any]]) -> tuple[list[str] | None, str | None]:
    """Each conversation's text, none if the template cannot be read; and what went wrong with the one after these."""
    # As transformers sets it up, but without clock and chance: equal conversations have to give equal texts.
    extensions = ["jinja2.ext.loopcontrols", _Generation]
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    del made.globals["lipsum"], made.filters["random"]
    made.filters["tojson"], made.globals["raise_exception"] = partial(json.dumps, ensure_ascii=False), _refuse
    texts: list[str] | None = None
    try:
        read, texts = made.from_string(template), []
        for one in conversations:
            text = read.render(one)
            if len(text) > LONGEST:
                _refuse(f"it writes {len(text):,} characters")
            texts.append(text)
    except Exception as error:
        return texts, f"{type(error).__name__}: {error}"
    return texts, None


def main() -> None:
    """Read a template and what to render with it as JSON, write the texts, and what went wrong, as JSON."""
    asked = json.load(sys.stdin)
    for limit, most in LIMITS.items():
        with suppress(ValueError):  # there is a lower one, or, of addresses on macOS, none
            resource.setrlimit(limit, (most, most))
    json.dump(_texts(**asked), sys.stdout)


if __name__ == "__main__":
    main()
