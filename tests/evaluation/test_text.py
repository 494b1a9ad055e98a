"""What is counted in a text, on cases counted by hand."""

from __future__ import annotations

import math

import pytest

from personalign.evaluation import text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Don't stop -- it's well-known!", ["don't", "stop", "it's", "well-known"]),
        ("It\u2019s 3.5 km", ["it\u2019s", "3", "5", "km"]),
        ("我爱 tea", ["我", "爱", "tea"]),
        ("", []),
        ("... \n\t!", []),
        ("snake_case", ["snake", "case"]),
    ],
)
def test_words(said: str, expected: list[str]) -> None:
    assert text.words(said) == expected


def test_diversity_of_a_loop_counted_by_hand() -> None:
    # a b a b a b: bigrams ab ba ab ba ab 2/5, trigrams aba bab aba bab 2/4, 4-grams abab baba abab 2/3.
    assert text.diversity("a b a b a b") == pytest.approx(2 / 5 * 2 / 4 * 2 / 3)
    assert text.repetition("a b a b a b") == pytest.approx(1 / 3)


def test_texts_without_repeats() -> None:
    assert text.diversity("every word here is another one") == 1.0
    assert text.repetition("every word here is another one") == 0.0


def test_short_texts_are_undefined_where_nothing_can_be_counted() -> None:
    assert math.isnan(text.diversity("")) and math.isnan(text.diversity("one"))
    assert text.diversity("two words") == 1.0
    assert math.isnan(text.repetition("only three words"))


def test_distinct_sees_that_every_answer_is_the_same() -> None:
    said = "one two three four five"
    # 4, 3 and 2 n-grams an answer, each of them said by all three answers.
    assert text.distinct([said] * 3) == pytest.approx((1 / 3) ** 3)
    assert text.distinct([said, "quite other words stand here"]) == 1.0
    # "b c" would repeat if n-grams spanned two answers.
    assert text.distinct(["b c", "a b", "c a"]) == 1.0
    assert math.isnan(text.distinct(["", "one"]))
