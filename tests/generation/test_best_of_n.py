"""Best-of-n gives the sample that the guide likes best."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from personalign.generation.best_of_n import BestOfN, BestOfNPreference
from personalign.generation.plain import Plain
from personalign.generation.preference_prompt import PreferencePrompt
from personalign.types import Response, Score


def samples(count: int) -> list[Response]:
    return [Response(request="q", text=f"answer {i}", sample=i) for i in range(count)]


@given(st.lists(st.integers(-3, 3) | st.floats(-9, 9), min_size=1, max_size=8))
def test_the_first_of_the_best_is_given(totals: list[float]) -> None:
    made = samples(len(totals))
    best = made[0]
    for response, total in zip(made, totals, strict=True):
        if total > totals[best.sample]:
            best = response
    assert BestOfN().select(made, [Score(total) for total in totals]) == best


def test_what_is_not_admitted_is_not_given() -> None:
    made = samples(4)
    assert BestOfN().select([made[1], made[3]], [Score(1.0), Score(2.0)]) == made[3]
    assert BestOfN().select([made[2]], None) == made[2], "a lone answer is not scored"


def test_the_prompts_are_those_of_the_prompting_parts(ask, state, spec) -> None:
    words = {"template": "{request} For: {profile}", "placement": "user"}
    assert BestOfN().plan(ask, state, spec) == Plain().plan(ask, state, spec)
    assert BestOfNPreference(**words).plan(ask, state, spec) == PreferencePrompt(**words).plan(ask, state, spec)
    assert BestOfN().render(ask, state) != BestOfNPreference(**words).render(ask, state)
