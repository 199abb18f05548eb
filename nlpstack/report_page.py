"""The page of an evaluation: one HTML file with tables and pictures, which asks nothing of any other place."""

import base64
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlpstack.errors import ConfigError
from nlpstack.report import INSTALL, can_draw, loss_picture
from nlpstack.results import listed


def check_report() -> None:
    """Raise ConfigError where no page can be made: known before the work."""
    if not can_draw() or find_spec("jinja2") is None:
        raise ConfigError(f"--report: needs matplotlib and jinja2; {INSTALL}")


def report_page(results: Sequence[Mapping[str, Any]]) -> str:
    """The page of results as `evaluate` returns them; all that comes from data is escaped."""
    check_report()
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = _shown
    page = environment.from_string(Path(__file__).with_name("report_page.html").read_text(encoding="utf-8"))
    return page.render(results=[{**one, "listed": list(listed(one)), "losses": _losses(one)} for one in results])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return (" / " if any(" " in str(one) for one in value) else " ").join(map(str, value))  # texts, or tags
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _losses(result: Mapping[str, Any]) -> str:
    """The picture of a run's losses, a PNG in base64; nothing of what is no run."""
    run = Path(result["model"])
    return base64.b64encode(loss_picture(run)).decode() if (run / "metrics.jsonl").exists() else ""
