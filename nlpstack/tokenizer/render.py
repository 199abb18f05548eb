"""Chat templates rendered in a process of its own, which chat.py starts: it may read its input, and has its limits."""

import json
import resource
import sys
from typing import Any, NoReturn

from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 2**31  # bytes of addresses


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def main() -> None:
    """Read a template and what to render with it as JSON, write the texts as JSON."""
    asked: dict[str, Any] = json.load(sys.stdin)
    # As transformers sets it up, but without a clock: equal conversations have to give equal texts.
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    made.globals["raise_exception"] = _refuse
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    template = made.from_string(asked["template"])
    json.dump([template.render(**one, **asked["tokens"]) for one in asked["conversations"]], sys.stdout)


if __name__ == "__main__":
    main()
