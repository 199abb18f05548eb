"""Sentences are those a reader sees, and together they are the text."""

import gzip
import re
import time
import unicodedata
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.data.corpus import SEGMENTER, WINDOW, split_sentences
from nlpstack.samples import sample

QUICK = settings(max_examples=300, deadline=None)  # deadlines fail on a busy machine
LANGUAGES = ["en", "de", "fr", "es", "ru", "ja", "zh", "hi", "ar", "am", "no such language"]
# What ends sentences, quotes, and all kinds of white space, some of which sentencex itself panics at.
ODD = st.text("abA B.?!\n\r\t\"'()“”。！\u3000 \x85\u2028\x1c\x0b\x0c\u00a01,é😀\u0301؟।[]\x00", max_size=80)  # noqa: RUF001


def assert_whole(text: str, parts: list[str]) -> None:
    assert "".join(parts) == text
    if text.strip():
        assert all(part.strip() for part in parts)
    else:
        assert len(parts) <= 1
    for before, part in pairwise(parts):
        assert part[0] in " \n\r\t" or unicodedata.east_asian_width(before[-1]) in "WF"
        assert before[-1] not in " \n\r\t"  # the space is the next one's


@QUICK
@given(st.one_of(st.text(max_size=80), ODD), st.sampled_from(LANGUAGES))
def test_sentences_join_to_the_text_and_none_is_blank(text: str, language: str) -> None:
    assert_whole(text, split_sentences(text, language))


@QUICK
@given(ODD)
def test_a_line_end_before_a_blank_line_ends_a_sentence(text: str) -> None:
    parts, at, cuts = split_sentences(text, "en"), 0, set()
    for part in parts:
        cuts.add(at)
        at += len(part)
    for found in re.finditer(r"\n\s*\n", text):
        before = text[: found.start()]
        if before.strip() and text[found.end() :].strip():
            assert cuts & set(range(len(before.rstrip()), found.start() + 1))


def test_a_text_that_is_empty_or_blank_is_no_sentence_or_one() -> None:
    assert split_sentences("", "en") == []
    assert split_sentences(" \n\n\t", "en") == [" \n\n\t"]


@pytest.mark.parametrize(
    ("language", "parts"),
    [
        ("en", ["He came.", " She went?", "  They stayed!", "\nAll of them."]),
        ("en", ["Dr. Smith met Mr. Jones in Washington, D.C. on Jan. 5.", " He paid $3.50, e.g. for tea."]),
        ("en", ['"No. Never." he said.', " It is there (see p. 3. I saw it)."]),
        ("en", ["  A line that goes\non in the next.", "\n\nTitle", "\n \nNo full stop", "\r\n\t\r\nThe end \n"]),
        ("de", ["Das ist z. B. gut.", " Am 3. Mai kam Dr. Müller.", " Ja!"]),
        ("es", ["¿Qué?", " Sí.", " El Sr. Pérez vino."]),
        ("ru", ["Это г. Москва.", " Да."]),  # noqa: RUF001
        ("hi", ["यह है।", " वह है।"]),
        ("ja", ["今日は晴れ。", "明日は雨。", "\n\u3000次の日。"]),
        ("zh", ["你好。", "再见！", "好吗？"]),  # noqa: RUF001
    ],
)
def test_sentences_end_where_a_reader_sees_their_end(language: str, parts: list[str]) -> None:
    assert split_sentences("".join(parts), language) == parts


def test_no_sentence_begins_inside_a_word_that_holds_a_stop() -> None:
    assert split_sentences("about 0 @.@ 7 , see nlp.stack!x or A.B.C. now", "en") == [
        "about 0 @.@ 7 , see nlp.stack!x or A.B.C. now"
    ]


def test_white_space_that_sentencex_panics_at_is_kept() -> None:
    assert split_sentences("A\u3000. B\x85. C\u2028. See.\u00a0Here. Go.", "en")[-1] == " Go."


@pytest.mark.parametrize("n_sentences", [10, 5000])
def test_a_long_paragraph_is_cut_at_the_same_places_as_a_short_one(n_sentences: int) -> None:
    sentences = [f"{' ' * (n > 0)}This is number {n} of many, by Dr. Smith." for n in range(n_sentences)]
    assert (len("".join(sentences)) > WINDOW) == (n_sentences > 10)
    assert split_sentences("".join(sentences), "en") == sentences


def test_a_sentence_longer_than_a_window_is_not_cut() -> None:
    parts = ["Short.", f" Long{' word' * WINDOW}.", " Short.", f" Long{' word' * WINDOW} end"]
    assert split_sentences("".join(parts), "en") == parts


@pytest.mark.parametrize("unit", ["x", " ", "\n ", "A. ", "Ab. ", "a!b?", "今日。", '"no end ', "(a. "])
def test_a_long_text_without_blank_lines_is_cut_in_seconds(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    started = time.process_time()
    assert "".join(split_sentences(text, "en")) == text
    assert time.process_time() - started < 8  # sentencex alone takes minutes


def test_shakespeare_is_cut_and_kept() -> None:
    text = sample("shakespeare").read_text(encoding="utf-8")
    parts = split_sentences(text, "en")
    assert_whole(text, parts)
    assert len(parts) > 10_000
    assert parts[:2] == ["First Citizen:\nBefore we proceed any further, hear me speak.", "\n\nAll:\nSpeak, speak."]


def test_wikipedia_is_cut_and_kept(shared_data: Path) -> None:
    with gzip.open(shared_data / "wikitext2" / "train.txt.gz", "rt", encoding="utf-8", newline="") as file:
        text = file.read(1_000_000)
    parts = split_sentences(text, "en")
    assert_whole(text, parts)
    assert 6000 < len(parts) < 9000
    assert parts[0] == " \n = Valkyria Chronicles III ="


def test_the_segmenter_is_named_with_its_version() -> None:
    assert version("sentencex") in SEGMENTER
