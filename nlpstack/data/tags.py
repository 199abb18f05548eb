"""Tags of named entities: the scheme of a file, IOB1, IOB2 or BIOES, is recognised, and its tags are read as IOB2."""

import re
from collections.abc import Callable, Sequence

from nlpstack.errors import DataError

# What each scheme asks for. If several fit a whole file, the first is taken.
SCHEMES = {
    "IOB2": "an entity begins with B-TYPE and goes on with I-TYPE",
    "IOB1": "B-TYPE stands only where an entity directly follows another of its type",
    "BIOES": "an entity is S-TYPE, or begins with B-TYPE, goes on with I-TYPE and ends with E-TYPE",
}
_TAG = re.compile(r"O|[BIES]-\S(.*\S)?")


def to_iob2(sentences: Sequence[Sequence[str]], where: Callable[[int, int], str]) -> tuple[list[tuple[str, ...]], str]:
    """The tags of one file as IOB2, sentence by sentence, and the name of the scheme it was written in.

    `where(i, j)` is the place of tag j of sentence i, for the error: the first that is malformed or leaves no scheme.
    """
    fitting = list(SCHEMES)
    for i, tags in enumerate(sentences):
        for j, (before, tag) in enumerate(zip(("O", *tags), tags, strict=False)):
            if not _TAG.fullmatch(tag):
                wanted = "a tag is O, B-TYPE or I-TYPE (in BIOES also E-TYPE, S-TYPE)"
                raise DataError(f"{where(i, j)}: malformed tag {tag!r}; {wanted}")
            ends = j + 1 == len(tags)
            left = [name for name in fitting if _fits(name, before, tag) and not (ends and not _fits(name, tag, "O"))]
            if not left:
                place = (f"after {before!r}" if j else "first") + " and last" * ends + " in a sentence"
                rule = f"so far the file is {fitting[0]}, where {SCHEMES[fitting[0]]}"
                raise DataError(f"{where(i, j)}: tag {tag!r} {place} fits no scheme of tags; {rule}")
            fitting = left
    return [tuple(map(_iob2, ("O", *tags), tags)) for tags in sentences], fitting[0]


def _fits(scheme: str, before: str, tag: str) -> bool:
    goes_on = before[0] in "BI" and before[2:] == tag[2:]
    if scheme == "BIOES":
        return (goes_on and tag[0] in "IE") if before[0] in "BI" else tag[0] in "OBS"
    return tag[0] in ("OB" if scheme == "IOB2" else "OI") or (goes_on and tag[0] in "BI")


def _iob2(before: str, tag: str) -> str:
    begins = tag[0] in "BS" or (tag[0] == "I" and not _fits("IOB2", before, tag))
    return tag if tag == "O" else ("B" if begins else "I") + tag[1:]
