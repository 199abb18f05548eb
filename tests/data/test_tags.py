"""Every scheme of tags is recognised by the whole file and becomes IOB2; what fits none is named with its line."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.data.labelled import to_iob2
from nlpstack.errors import DataError

QUICK = settings(max_examples=200, deadline=None)  # deadlines fail on a busy machine

Span = tuple[str, int, int]  # type, first word, word after the last


def read(*sentences: str) -> tuple[list[str], str]:
    found, scheme = to_iob2([sentence.split() for sentence in sentences], lambda i, j: f"{i + 1}.{j + 1}")
    return [" ".join(tags) for tags in found], scheme


def refused(sentences: Sequence[Sequence[str]], place: str, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        to_iob2(sentences, lambda i, j: f"{i + 1}.{j + 1}")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{place}: "), message
    for part in parts:
        assert part in message, message


# -- once more, in another way ---------------------------------------------------------------------------------------


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence, whatever its scheme; where a tag goes on with nothing an entity begins."""
    found: list[Span] = []
    for at, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        before = tags[at - 1] if at else "O"
        if letter in ("I", "E") and before in (f"B-{kind}", f"I-{kind}"):
            found[-1] = (kind, found[-1][1], at + 1)
        elif letter != "O":
            found.append((kind, at, at + 1))
    return found


def written(entities: Sequence[Span], n_words: int, scheme: str) -> list[str]:
    tags = ["O"] * n_words
    last: Span = ("", -1, -1)
    for kind, start, stop in entities:
        for at in range(start, stop):
            tags[at] = f"I-{kind}"
        if scheme != "IOB1" or (last[0], last[2]) == (kind, start):
            tags[start] = f"B-{kind}"
        if scheme == "BIOES":
            tags[stop - 1] = f"S-{kind}" if stop - start == 1 else f"E-{kind}"
        last = (kind, start, stop)
    return tags


def accepts(scheme: str, tags: Sequence[str], is_whole: bool) -> bool:
    """Whether a sentence, or if it is not whole some longer one that begins so, is written in the scheme."""
    longer = [] if is_whole or tags[-1][0] not in "BI" else [[*tags, f"E-{tags[-1][2:]}"]]
    return any(written(spans(each), len(each), scheme) == list(each) for each in [tags, *longer])


def expected(sentences: Sequence[Sequence[str]]) -> str:
    """The scheme of a file, or the place of its first offending tag."""
    left = ["IOB2", "IOB1", "BIOES"]
    for i, tags in enumerate(sentences):
        for j in range(len(tags)):
            left = [scheme for scheme in left if accepts(scheme, tags[: j + 1], j + 1 == len(tags))]
            if not left:
                return f"{i + 1}.{j + 1}"
    return left[0]


# -- the properties --------------------------------------------------------------------------------------------------

STRETCHES = st.lists(st.tuples(st.sampled_from(["", "PER", "LOC", "a-b"]), st.integers(1, 3)), min_size=1, max_size=6)


def entities_of(stretches: Sequence[tuple[str, int]]) -> tuple[list[Span], int]:
    found, at = [], 0
    for kind, length in stretches:
        if kind:
            found.append((kind, at, at + length))
        at += length
    return found, at


@QUICK
@given(st.lists(STRETCHES, max_size=5), st.sampled_from(["IOB1", "IOB2", "BIOES"]))
def test_the_entities_of_a_file_are_the_same_in_every_scheme(
    sentences: list[list[tuple[str, int]]], scheme: str
) -> None:
    wanted = [entities_of(stretches) for stretches in sentences]
    given_tags = [written(entities, n_words, scheme) for entities, n_words in wanted]
    found, recognised = to_iob2(given_tags, lambda i, j: "")
    assert [spans(tags) for tags in found] == [entities for entities, _ in wanted]
    assert [list(tags) for tags in found] == [written(entities, n_words, "IOB2") for entities, n_words in wanted]
    assert recognised == scheme or given_tags == [written(*each, recognised) for each in wanted]


TAGS = st.sampled_from(["O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y"])


@QUICK
@given(st.lists(st.lists(TAGS, min_size=1, max_size=5), max_size=4))
def test_the_scheme_or_the_first_offending_line_is_the_one_that_a_plain_definition_gives(
    sentences: list[list[str]],
) -> None:
    wanted = expected(sentences)
    if wanted in ("IOB1", "IOB2", "BIOES"):
        found, scheme = to_iob2(sentences, lambda i, j: "")
        assert scheme == wanted
        assert expected(found) == "IOB2"
    else:
        refused(sentences, wanted)


# -- examples --------------------------------------------------------------------------------------------------------


def test_the_scheme_is_decided_by_the_whole_file() -> None:
    assert read("O I-X I-X", "I-X B-X") == (["O B-X I-X", "B-X B-X"], "IOB1")
    assert read("B-X I-X B-Y", "O") == (["B-X I-X B-Y", "O"], "IOB2")
    assert read("B-X E-X S-Y", "B-X I-X E-X") == (["B-X I-X B-Y", "B-X I-X I-X"], "BIOES")


def test_what_fits_several_schemes_is_iob2_then_iob1() -> None:
    assert read("O O", "O")[1] == "IOB2"
    assert read()[1] == "IOB2"
    assert read("O I-X")[1] == "IOB1"
    assert read("B-X I-X O")[1] == "IOB2"


@pytest.mark.parametrize("tag", ["Q-per", "B", "I", "B_per", "I-", "", "b-per", "o", "B-per ", "B- per", "0", "L-per"])
def test_a_malformed_tag_is_named_with_what_would_be_right(tag: str) -> None:
    refused([["O"], ["O", tag], ["bad"]], "2.2", f"malformed tag {tag!r}", "a tag is O, B-TYPE or I-TYPE")


@pytest.mark.parametrize(
    ("sentences", "place", "part"),
    [
        (
            ["B-X I-X", "O I-X O"],
            "2.2",
            "'I-X' after 'O' in a sentence fits no scheme of tags; so far the file is IOB2",
        ),
        (["I-X", "B-X"], "2.1", "'B-X' first and last in a sentence fits no scheme"),
        (["S-X", "B-X O"], "2.2", "so far the file is BIOES, where an entity is S-TYPE"),
        (["S-X", "B-X I-X", "O"], "2.2", "'I-X' after 'B-X' and last in a sentence"),
        (["B-X E-Y"], "1.2", "'E-Y' after 'B-X'"),
        (["I-X S-X"], "1.2", "so far the file is IOB1, where B-TYPE stands only"),
        (["O B-X B-X", "O I-X", "Q-per"], "2.2", "'I-X'"),
    ],
)
def test_the_first_line_that_leaves_no_scheme_is_named(sentences: list[str], place: str, part: str) -> None:
    refused([sentence.split() for sentence in sentences], place, part)
