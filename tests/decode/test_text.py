"""Bytes into text, cut at stop strings."""

from copy import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlpstack.decode.text import TextStream


def stream(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[str, bool, list[str]]:
    """The text, whether a stop string ended it, and the deltas."""
    text = TextStream(stop)
    deltas = [text.push(piece) for piece in pieces]
    deltas.append(text.push(b"", final=True))
    return text.text, text.stopped, deltas


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def until_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """By definition: read character by character until the text ends in a stop string."""
    for end in range(1, len(text) + 1):
        ends = [len(s) for s in stop if text[:end].endswith(s)]
        if ends:
            return text[: end - max(ends)], True
    return text, False


SIZES = st.lists(st.integers(0, 5), max_size=12)


@given(st.binary(max_size=30), SIZES)
def test_deltas_make_up_the_text_of_any_bytes(data: bytes, sizes: list[int]) -> None:
    text, stopped, deltas = stream(cut(data, sizes))
    assert "".join(deltas) == text == data.decode(errors="replace")
    assert not stopped


@given(st.text("aébß😀", max_size=12), SIZES, st.lists(st.text("aébß😀", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, sizes: list[int], stops: list[str]
) -> None:
    got, stopped, deltas = stream(cut(text.encode(), sizes), tuple(stops))
    assert (got, stopped) == until_stop(text, tuple(stops))
    assert "".join(deltas) == got


@pytest.mark.parametrize(
    ("pieces", "deltas"),
    [
        ([b"a\xc3", b"\xa9b"], ["a", "éb", ""]),  # half a character
        ([b"one\n", b"two"], ["one", "\ntwo", ""]),  # could have become the stop string
        ([b"one\n", b"\ntwo"], ["one", "", ""]),
        ([b"one", b"\n"], ["one", "", "\n"]),
        ([b"one\xf0\x9f"], ["one", "\ufffd"]),  # cut short by max_new_tokens
    ],
)
def test_what_may_change_is_held_back(pieces: list[bytes], deltas: list[str]) -> None:
    assert stream(pieces, ("\n\n",))[2] == deltas


def test_a_copy_goes_on_on_its_own() -> None:
    one = TextStream(("STOP",))
    one.push("aé ST".encode())
    other = copy(one)
    assert (one.push(b"OP"), one.stopped, one.text) == ("", True, "aé ")
    assert (other.push("ÄR".encode()), other.stopped, other.text) == ("STÄR", False, "aé STÄR")
    half = TextStream()
    half.push("é".encode()[:1])
    copies = [copy(half), copy(half)]
    assert [one.push(end) for one, end in zip(copies, (b"\xa9", b"\xa8"), strict=True)] == ["é", "è"]
    assert half.push(b"\xa9") == "é"
    assert copy(one).stopped
