"""Scores of a whole corpus: named numbers, each with an interval and a signature. No torch here."""

from typing import NamedTuple


class Score(NamedTuple):
    """One number and what it says of the truth."""

    value: float
    low: float  # 95 % bootstrap interval
    high: float
    n: int  # what the value is averaged over: tokens, words, bytes, examples
    signature: str  # how it was counted: two scores compare only if theirs agree
