"""Rejection sampling: when it draws again, what it gives, and what the samples of best-of-n have to do with it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalign.generation.rejection import Rejection
from personalign.plans import PolicySpec
from personalign.types import Message, Request, Response, Score, UserState

ASK = Request(id="q", user="ada", messages=(Message("user", "What is tea?"),))
POEMS = UserState(profile="I like poems.")


def part(threshold: float = 1.0, draws: int = 4) -> Rejection:
    return Rejection(threshold=threshold, draws=draws, template="{profile}", placement="user")


def drawn(*totals: float) -> list[Response]:
    return [Response(request="q", text=str(i), sample=i, score=Score(t)) for i, t in enumerate(totals)]


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=12, max_size=12), st.integers(-4, 4), st.integers(1, 12))
def test_it_stops_at_the_first_that_is_good_enough_or_after_the_last(
    totals: list[int], threshold: int, draws: int
) -> None:
    made = drawn(totals[0])
    while (plan := part(threshold, draws).next(ASK, POEMS, made, PolicySpec())) is not None:
        assert plan == part().plan(ASK, POEMS, PolicySpec()), "every draw is of the same prompt"
        made = drawn(*totals[: len(made) + 1])
    enough = [i for i, total in enumerate(totals[:draws]) if total >= threshold]
    assert len(made) == (enough[0] + 1 if enough else draws)
    assert part().final(made) == made[totals.index(max(totals[: len(made)]))]


def test_its_other_draws_stand_behind_its_favourite_by_their_scores() -> None:
    made = drawn(0.0, 2.0, -1.0, 2.0)
    assert [r.sample for r in part().answers(made)] == [1, 3, 0, 2]


def test_of_several_samples_the_guide_s_favourite_is_given() -> None:
    made = drawn(0.0, 2.0, 2.0)
    assert part().select(made, [r.score for r in made if r.score]) is made[1]
    assert part().select(made[:1], None) is made[0]


def test_a_response_without_a_score_is_a_bug_of_ours() -> None:
    with pytest.raises(AssertionError, match="shown every score"):
        part().final([Response(request="q", text="a")])
