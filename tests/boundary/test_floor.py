"""Floors keep the constraint, whatever the user's reward says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalign.boundary.floor import Floor
from personalign.contracts import UserError
from personalign.generation.best_of_n import BestOfN
from personalign.plans import Chat, Plan, Stream
from personalign.types import Message, Request, Response, Score

ASK = Request(id="q", user="ada", messages=(Message("user", "Hi"),))
NUMBERS = st.integers(-2, 2).map(float) | st.floats(-5, 5)


def samples(count: int) -> list[Response]:
    return [Response(request="q", text=f"answer {i}", sample=i) for i in range(count)]


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=8),
    st.tuples(NUMBERS, NUMBERS),
)
def test_the_best_answer_above_all_floors_by_brute_force(
    rows: list[tuple[float, float, float]], tau: tuple[float, float]
) -> None:
    """argmax of R_u over {y: v_1 >= tau_1, v_2 >= tau_2}, the first of equals; empty where there is none."""
    made = samples(len(rows))
    values = [Score(0.0, {"harmlessness": v, "honesty": w, "humour": -9.0}) for _, v, w in rows]
    admitted = Floor(floors={"harmlessness": tau[0], "honesty": tau[1]}).admit(ASK, made, values)
    best = None
    for i, (reward, v, w) in enumerate(rows):
        if v >= tau[0] and w >= tau[1] and (best is None or reward > rows[best][0]):
            best = i
    if best is None:
        assert not admitted
    else:
        rewards = [Score(rows[one.sample][0]) for one in admitted]
        assert BestOfN().select(admitted, rewards) == made[best]


def test_a_floor_of_minus_infinity_admits_all_and_plans_stay() -> None:
    part = Floor(floors={"harmlessness": -math.inf})
    made = samples(3)
    assert list(part.admit(ASK, made, [Score(0.0, {"harmlessness": v}) for v in (-9.0, -math.inf, 0.0)])) == made
    plan = Plan((Stream((Chat(ASK.messages),)),))
    assert part.shape(plan) is plan


def test_what_is_not_a_number_is_not_admitted() -> None:
    assert Floor(floors={"harmlessness": -9.0}).admit(ASK, samples(1), [Score(0.0, {"harmlessness": math.nan})]) == []


def test_mistakes_are_told_plainly() -> None:
    with pytest.raises(UserError, match="boundary floor has no floor"):
        Floor(floors={})
    part = Floor(floors={"harmlessness": 0.0, "honesty": 0.0})
    with pytest.raises(UserError, match=r"scores harmlessness, not honesty.*~evaluation\.floors\.honesty"):
        part.admit(ASK, samples(1), [Score(0.0, {"harmlessness": 1.0})])
    with pytest.raises(UserError, match="scores no named value, not harmlessness"):
        part.admit(ASK, samples(1), [Score(0.0)])
