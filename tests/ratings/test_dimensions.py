"""Ratings against values worked out by hand, and what no text may do to them."""

from __future__ import annotations

import math
import time

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from personalign.ratings.dimensions import DIMENSIONS, rate, syllables

DENSITIES = ("warmth", "formality", "concreteness", "address", "caution", "grade")


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("cat", 1), ("make", 1), ("table", 2), ("free", 1), ("walked", 1), ("wanted", 2), ("agreed", 2),
        ("University", 5), ("reading", 2), ("tsk", 1), ("1984", 1), ("the", 1), ("idea", 2),
    ],
)  # fmt: skip
def test_syllables(word: str, count: int) -> None:
    assert syllables(word) == count


@pytest.mark.parametrize(
    ("dimension", "text", "value"),
    [
        ("length", "The cat sat. The dog ran.", math.log(7)),
        ("length", "don't stop-now 42", math.log(5)),
        # 3 words a sentence, 1 syllable a word.
        ("grade", "The cat sat. The dog ran.", 0.39 * 3 + 11.8 * 1 - 15.59),
        # 4 words, 1 sentence; u-ni-ver-si-ty, stu-dents, read, pa-pers: 10 syllables.
        ("grade", "University students read papers.", 0.39 * 4 + 11.8 * 10 / 4 - 15.59),
        # Two items of one word: their numbers are no sentences.
        ("grade", "1. Bread\n2. Milk", 0.39 * 1 + 11.8 * 1 - 15.59),
        # 100 words without a full stop count as sentences of 40.
        ("grade", "cat " * 100, 0.39 * 40 + 11.8 - 15.59),
        # One endless word counts as its first 30 letters: 15 syllables.
        ("grade", "lo" * 1000, 0.39 + 11.8 * 15 - 15.59),
        # 8 words: 2 articles and 1 preposition; 1 pronoun; 1 short form and 1 exclamation mark.
        ("formality", "The cat of the house didn't like us!", 100 * (3 - 1 - 2) / 8),
        ("formality", "A letter to the director of the bank", 100 * 5 / 8),
        ("formality", "I think we know him", 100 * -3 / 5),
        # 6 words: two names and a figure; the first word of a sentence is no name.
        ("concreteness", "We met Ada Lovelace in 1833.", math.sqrt(100 * 3 / 6)),
        ("concreteness", "Paris is nice. I know.", 0.0),
        # 3 words, 2 line breaks, 2 items.
        ("structure", "Buy:\n- milk\n\n- bread", math.log(1 + 100 * 4 / 3)),
        ("structure", "One paragraph, however long it is.", 0.0),
        ("address", "You can take your time.", math.sqrt(100 * 2 / 5)),
        ("caution", "It may often rain.", math.sqrt(100 * 2 / 4)),
    ],
)
def test_by_hand(dimension: str, text: str, value: float) -> None:
    assert rate(text)[dimension] == pytest.approx(value)


def test_warmth_is_vader_on_short_windows() -> None:
    vader = SentimentIntensityAnalyzer()
    short = "I love this wonderful garden, and everybody here is kind."
    good, bad = "happy " * 20, "terrible " * 20
    assert rate(short)["warmth"] == vader.polarity_scores(short)["compound"] > 0.8
    both = [vader.polarity_scores(window.strip())["compound"] for window in (good, bad)]
    assert rate(good + bad)["warmth"] == pytest.approx(sum(both) / 2)
    assert rate("plain " * 20 + "happy " * 5)["warmth"] == pytest.approx(
        vader.polarity_scores("plain " * 20 + "happy " * 5)["compound"]
    )


def test_a_sentence_cut_off_does_not_count_for_the_grade() -> None:
    whole = "The cat sat. The dog ran."
    assert rate(whole + " However, extraordinary circumstances")["grade"] == rate(whole)["grade"]


@pytest.mark.parametrize("dimension", DENSITIES)
def test_densities_do_not_grow_with_length(dimension: str) -> None:
    text = "You may well love the old garden of Anna in the spring and it is a kind place to us. "
    assert rate(text * 5)[dimension] == pytest.approx(rate(text)[dimension])
    assert rate(text)[dimension] != 0


def test_both_apostrophes_are_one() -> None:
    assert rate("You don\u2019t know; you\u2019re late.") == rate("You don't know; you're late.")


@pytest.mark.parametrize("text", ["", "   \n\t", "...!?", "\U0001f600\U0001f600", "- \n- \n* "])
def test_a_text_without_words_is_zero_throughout(text: str) -> None:
    assert rate(text) == dict.fromkeys(DIMENSIONS, 0.0)


@pytest.mark.parametrize("text", ["a", "I", "漢字", "\x00 b", "é" * 50, "'a'", "\ud800 x", "١٢٣", "#1"])
def test_odd_texts_have_finite_ratings(text: str) -> None:
    assert all(math.isfinite(value) for value in rate(text).values())


@pytest.mark.parametrize(
    "unit", ["word ", "x", "I love you! ", "1. ", "a'", "!", '."', "A.", "x\n", "漢字", ':) good "']
)
def test_a_megabyte_takes_seconds(unit: str) -> None:
    text = unit * (1_000_000 // len(unit.encode()))
    start = time.process_time()
    assert all(math.isfinite(value) for value in rate(text).values())
    assert time.process_time() - start < 10
