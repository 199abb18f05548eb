"""The pictures in these pages, drawn from the tables of benchmarks/RESULTS.md, so that they cannot go stale."""

import re
from html import escape
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent.parent / "benchmarks" / "RESULTS.md"
PICTURE = re.compile(r"<!-- picture of ([^:]+): (.+) -->")  # of a section: one of its columns
_RATIO = re.compile(r"(\d+\.\d+) \((\d+\.\d+) to (\d+\.\d+)\)")
_NAMES, _WIDE, _TALL = 410, 300, 24  # units: of the names, from 0 to the largest ratio, of a row


class Bar(NamedTuple):
    """A comparison: ours over the peer's speed, and how far the pairs spread; None where it is not measured."""

    name: str
    ratio: float | None
    low: float = 0.0
    high: float = 0.0


def bars(section: str, column: str, text: str) -> list[Bar]:
    """A bar for each row of the first table of a section of RESULTS.md; ValueError if there is no such column."""
    part = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
    lines = re.findall(r"^\|(.+)\|$", part.group(1), flags=re.M) if part else []
    table = [[cell.strip() for cell in line.split("|")] for line in lines]
    if not table or column not in table[0]:
        raise ValueError(f"benchmarks/RESULTS.md has no column '{column}' under '{section}'")
    place, found = table[0].index(column), []
    for row in table[2:]:
        if len(row) != len(table[0]):
            break  # another table
        ratio, name = _RATIO.search(row[place]), row[0].replace("`", "")
        found.append(Bar(name, *map(float, ratio.groups())) if ratio else Bar(name, None))
    return found


def picture(section: str, column: str, text: str) -> str:
    """An SVG: a bar a row, a line at 1 (as fast as the peer), whiskers from the smallest to the largest pair."""
    rows = bars(section, column, text)
    most = max([2.0, *(bar.high for bar in rows)])
    height, one = _TALL * len(rows) + 34, _NAMES + _WIDE / most
    said = f"{section}, {column}: how many times as fast as the peer"
    parts = [
        f'<div><svg role="img" aria-label="{escape(said)}" viewBox="0 0 {_NAMES + _WIDE + 70} {height}" '
        'style="max-width: 48rem; width: 100%; font: 12px sans-serif" fill="currentColor">'
    ]
    for number, bar in enumerate(rows):
        y = number * _TALL + 4
        parts.append(f'<text x="{_NAMES - 8}" y="{y + 13}" text-anchor="end">{escape(bar.name)}</text>')
        if bar.ratio is None:
            parts.append(f'<text x="{_NAMES + 6}" y="{y + 13}" opacity="0.6">unmeasured</text>')
            continue
        width, low, high = (_WIDE * value / most for value in (bar.ratio, bar.low, bar.high))
        parts += [
            f'<rect x="{_NAMES}" y="{y + 2}" width="{width:.1f}" height="{_TALL - 9}" fill="#1f77b4" opacity="0.75"/>',
            f'<path d="M{_NAMES + low:.1f} {y + 9.5} H{_NAMES + high:.1f}" stroke="currentColor" stroke-width="1.5"/>',
            f'<text x="{_NAMES + max(width, high) + 6:.1f}" y="{y + 13}">{bar.ratio:.2f}</text>',
        ]
    parts.append(f'<path d="M{one:.1f} 0 V{height - 28}" stroke="currentColor" stroke-dasharray="4" opacity="0.6"/>')
    parts.append(f'<text x="{one:.1f}" y="{height - 14}" text-anchor="middle">1: as fast as the peer</text>')
    return "".join([*parts, "</svg></div>"])


def fill_pictures(page: str) -> str:
    """A page with its pictures drawn."""
    text = RESULTS.read_text(encoding="utf-8")
    return PICTURE.sub(lambda found: picture(found[1], found[2], text), page)
