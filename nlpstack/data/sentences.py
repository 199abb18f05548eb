"""Text cut into sentences, without a character lost."""

import re
import unicodedata
from collections.abc import Iterator
from importlib.metadata import version

import sentencex

SEGMENTER = f"sentencex-{version('sentencex')}"  # another version may cut elsewhere: part of what is cached by

WINDOW = 4096  # characters of a paragraph that are cut at a time: sentencex's time grows with their square
_BREAK = re.compile(r"(\n\s*\n)")  # a line end and at least one blank line
_SPACE = " \n\r\t"  # no piece of a tokenizer holds one of them behind its first character
_ODD_SPACE = re.compile(r"[^\S \n]")


def split_sentences(text: str, language: str) -> list[str]:
    """The sentences of a text; joined, they are the text. Each but the first begins with the white space before it.

    `language` is an ISO 639 code; one that sentencex does not know is cut by English rules. A sentence begins where no
    piece of a tokenizer runs on: at white space, or after a wide character, as in Chinese and Japanese, where one may.
    """
    parts, start, last = [], 0, len(text.rstrip())
    for begin, end in _segments(text, language):
        segment = text[begin:end]
        for cut in (begin + len(segment.rstrip()), begin + len(segment.rstrip(_SPACE))):
            wide = unicodedata.east_asian_width(text[cut - 1]) in "WF"  # or full-width
            if start < cut < last and segment.strip() and (text[cut] in _SPACE or wide):
                parts.append(text[start:cut])
                start = cut
                break
    return [*parts, text[start:]] if text else []


def _segments(text: str, language: str) -> Iterator[tuple[int, int]]:
    """Begin and end of what sentencex takes for sentences, paragraph by paragraph."""
    plain = _ODD_SPACE.sub(" ", text)  # sentencex panics at "A<ideographic space>."; the places stay the same
    at = 0
    for number, block in enumerate(_BREAK.split(plain)):
        stop = at + len(block)
        while at < stop and number % 2 == 0:  # the odd ones are the breaks
            end = min(at + WINDOW, stop)
            found = sentencex.segment(language, plain[at:end])
            whole = found if end == stop else found[:-1]  # the last one may go on
            for segment in whole:
                yield at, at + len(segment)
                at += len(segment)
            if end == stop or not whole:
                at = end
        at = stop
