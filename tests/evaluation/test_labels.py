"""Labels and choices by hand and by brute force."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from personalign.evaluation.labels import error, f1_counts, likeliest, macro_f1, named, offered
from personalign.results import ChoiceScore
from personalign.types import Message, Request

TAGS = ("comedy", "dark comedy", "sci-fi", "action")
STARS = ("1", "2", "3", "4", "5")
PAIR = ("[1]", "[2]")


def request(choices: tuple[str, ...], *right: str, asked: str = "") -> Request:
    return Request(id="r", user="u", messages=(Message("user", asked),), references=right, choices=choices)


@pytest.mark.parametrize(
    ("answer", "choices", "label"),
    [
        ("comedy", TAGS, "comedy"),
        (" Dark Comedy.", TAGS, "dark comedy"),
        ("The tag is 'sci-fi'!", TAGS, "sci-fi"),
        ("comedy, comedy and comedy", TAGS, "comedy"),
        ("comedy or action", TAGS, None),
        ("a dark comedy, not a comedy", TAGS, None),
        ("reaction", TAGS, None),
        ("comedyaction", TAGS, None),
        ("", TAGS, None),
        ("[2]", PAIR, "[2]"),
        ("I think [1] is related.", PAIR, "[1]"),
        ("[1] rather than [2]", PAIR, None),
        ("1", PAIR, None),
        ("4", STARS, "4"),
        ("Score: 4/4", STARS, "4"),
        ("4 out of 5", STARS, None),
        ("14", STARS, None),
    ],
)
def test_the_one_label_that_is_named(answer: str, choices: tuple[str, ...], label: str | None) -> None:
    assert named(answer, choices) == label
    assert named(answer, choices[::-1]) == label


def test_choices_are_offered_when_the_request_tells_all_of_them() -> None:
    assert offered(request(STARS, "1", asked="Just answer with 1, 2, 3, 4, or 5."))
    assert offered(request(PAIR, "[1]", asked='Answer with [1] or [2]. [1]: "A" [2]: "B"'))
    assert offered(request(("A cat", "B"), "B", asked="a CAT or b?"))
    assert not offered(request(STARS, "1", asked="Just answer with 1, 2, 3 or 4."))
    assert not offered(request(("a", "b"), "a", asked="Take an abacus."))
    assert not offered(request((), "a", asked="a"))


def test_errors_of_numbers() -> None:
    assert error("4", request(STARS, "2")) == 2.0
    assert error("4", request(STARS, "2", "5")) == 1.0
    assert [error(None, request(STARS, right)) for right in STARS] == [4.0, 3.0, 2.0, 3.0, 4.0]
    assert math.isnan(error("comedy", request(TAGS, "comedy")))


def slow_f1(said: list[str | None], right: list[str]) -> float:
    values = []
    for label in {*said, *right} - {None}:
        tp = sum(s == r == label for s, r in zip(said, right, strict=True))
        predicted, actual = said.count(label), right.count(label)  # type: ignore[arg-type]
        precision = tp / predicted if predicted else 0.0
        recall = tp / actual if actual else 0.0
        values.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return sum(values) / len(values)


def test_macro_f1_by_hand_and_against_precision_and_recall() -> None:
    said, right = ["comedy", "comedy", "action", None], ["comedy", "action", "action", "sci-fi"]
    sums = np.sum([f1_counts(s, [r], TAGS) for s, r in zip(said, right, strict=True)], axis=0)
    assert macro_f1(sums) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3), "dark comedy is nowhere"
    draw = random.Random(0)
    for _ in range(50):
        right = [draw.choice(TAGS) for _ in range(draw.randrange(1, 12))]
        said = [draw.choice([*TAGS, None, one, one]) for one in right]
        sums = np.sum([f1_counts(s, [r], TAGS) for s, r in zip(said, right, strict=True)], axis=0)
        assert macro_f1(sums) == pytest.approx(slow_f1(said, right))
        assert macro_f1(np.stack([sums, 2 * sums])) == pytest.approx([slow_f1(said, right)] * 2)


def test_of_several_right_labels_the_named_one_counts() -> None:
    assert f1_counts("b", ["a", "b"], "abc") == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert f1_counts("c", ["a", "b"], "abc") == [0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert f1_counts(None, ["a", "b"], "abc") == [0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_the_likeliest_choice_as_a_whole_and_by_token() -> None:
    one = request(("short", "a long one"), "a long one")
    scores = [ChoiceScore(-4.0, 2), ChoiceScore(-6.0, 6)]
    assert likeliest(one, scores, by_token=True) == 1.0 and likeliest(one, scores, by_token=False) == 0.0
    tied = [ChoiceScore(-4.0, 2), ChoiceScore(-4.0, 4), ChoiceScore(-9.0, 3)]
    three = request(("a", "b", "c"), "b")
    assert likeliest(three, tied, by_token=False) == 0.5 and likeliest(three, tied, by_token=True) == 1.0
    assert likeliest(request(("a", "b", "c"), "a", "b"), tied, by_token=False) == 1.0
