"""Multi-CoS: its zero points and weights, and that with one context it is context steering."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalign.generation.multi_cos import MultiCoS
from personalign.plans import Chat, Plan, PolicySpec
from personalign.types import Message, Request, Snippet, UserState

PART = {"template": "{request} ({profile})", "placement": "user"}
ASK = Request(id="q", user="ada", messages=(Message("user", "Why?"),))
SPEC = PolicySpec(aligned=(("dpo", 1.0),))


def weights(plan: Plan) -> dict[str, float]:
    """Each stream's weight by what its user turn says."""
    assert all(stream.deltas == SPEC.aligned for stream in plan.streams)
    turns = [
        segment.messages[-1].content
        for stream in plan.streams
        for segment in stream.prompt
        if isinstance(segment, Chat)
    ]
    return dict(zip(turns, (stream.weight for stream in plan.streams), strict=True))


@settings(deadline=None)
@given(st.floats(-3, 3), st.lists(st.floats(-2, 2), max_size=3))
def test_it_is_the_formula(strength: float, known: list[float]) -> None:
    state = UserState(snippets=tuple(Snippet(f"c{i}", "e", "ada", weight=by) for i, by in enumerate(known)))
    found = weights(MultiCoS(strength=strength, **PART).plan(ASK, state, SPEC))  # type: ignore[arg-type]
    lambdas = [strength * by for by in known]
    assert found.get("Why?", 0.0) == pytest.approx(1 - sum(lambdas))
    for i, by in enumerate(lambdas):
        assert found.get(f"Why? (c{i})", 0.0) == pytest.approx(by)


def test_with_one_context_it_is_cos_from_another_zero_point(make: Any, ask: Request, spec: PolicySpec) -> None:
    one = UserState(snippets=(Snippet("I like poetry.", "e1", "ada"),), profile="I like poetry.")
    for strength in (-1.0, 0.0, 0.7, 4.0):
        ours = make("multi_cos", strength=1.0 + strength).plan(ask, one, spec).streams
        theirs = make("cos", strength=strength).plan(ask, one, spec).streams
        by_source = [{s.source: s.weight for s in streams if s.weight} for streams in (ours, theirs)]
        assert by_source[0].keys() == by_source[1].keys()
        assert list(by_source[0].values()) == pytest.approx([by_source[1][key] for key in by_source[0]])


def test_nothing_recalled_or_strength_zero_is_plain(
    make: Any, ask: Request, state: UserState, spec: PolicySpec
) -> None:
    plain = make("plain").plan(ask, state, spec)
    assert make("multi_cos").plan(ask, UserState(), spec) == plain
    assert make("multi_cos", strength=0.0).plan(ask, state, spec) == plain


def test_a_text_that_is_recalled_twice_counts_twice() -> None:
    twice = UserState(snippets=(Snippet("c", "e1", "ada"), Snippet("c", "e2", "ada", weight=0.5)))
    found = weights(MultiCoS(strength=1.0, **PART).plan(ASK, twice, SPEC))  # type: ignore[arg-type]
    assert found == pytest.approx({"Why?": -0.5, "Why? (c)": 1.5})
