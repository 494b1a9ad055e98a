"""One budget over the texts of several memories, against cases worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalign.budget import distinct, within
from personalign.types import Snippet, Stance, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy

STANCE = Stance(("warmth",), (1.0,))


def words(text: str) -> int:
    return len(text.split())


def state(*snippets: str, profile: str | None = None) -> UserState:
    return UserState(snippets=tuple(Snippet(s, f"e-{s}", "ada") for s in snippets), profile=profile, stance=STANCE)


def texts(states: Sequence[UserState]) -> list[str]:
    """Every text in the order in which it is counted."""
    return [
        text for s in states for text in ([s.profile] if s.profile is not None else []) + [n.text for n in s.snippets]
    ]


MEMBERS = [state(profile="I like tea"), state("one", "two words", "a b c"), state("late", profile="age: 34")]


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (1, []),  # the profile of three words is whole or not at all, and nothing after it passes by
        (3, ["I like tea"]),
        (5, ["I like tea", "one"]),  # one word is left, "two words" needs two: "late" does not pass by either
        (6, ["I like tea", "one", "two words"]),
        (10, ["I like tea", "one", "two words", "a b c"]),
        (11, ["I like tea", "one", "two words", "a b c", "age: 34"]),
        (12, ["I like tea", "one", "two words", "a b c", "age: 34", "late"]),
    ],
)
def test_whole_texts_in_the_order_of_the_members(budget: int, kept: list[str]) -> None:
    assert texts(within(MEMBERS, budget, words)) == kept


def test_the_order_of_the_members_decides() -> None:
    assert texts(within(MEMBERS[::-1], 3, words)) == ["age: 34", "late"]


def test_a_stance_is_no_text_and_a_text_of_size_0_is_free() -> None:
    free = [state("", "one", "")]
    assert texts(within(free, 1, words)) == ["", "one", ""]
    assert all(s.stance == STANCE for s in within(MEMBERS, 1, words))


TEXT = st.integers(0, 4).map(lambda n: " ".join("w" * n))
STATES = st.lists(
    st.builds(lambda p, s: state(*s, profile=p), st.none() | TEXT, st.lists(TEXT, max_size=4)), max_size=4
)


@given(STATES, st.integers(1, 30))
def test_the_longest_beginning_that_fits(states: list[UserState], budget: int) -> None:
    everything, kept = texts(states), texts(within(states, budget, words))
    assert kept == everything[: len(kept)]
    assert sum(map(words, kept)) <= budget
    assert len(kept) == len(everything) or sum(map(words, everything[: len(kept) + 1])) > budget


def test_a_system_counts_tokens_of_its_policy(tiny: Policy) -> None:
    """The tiny model's tokens are bytes, so that the budget can be told from the texts alone."""
    from personalign import compose
    from personalign.system import System

    def recalled(budget: int | None) -> UserState:
        given = "null" if budget is None else budget
        system = System(compose(["memory=[statement,recency]", "data.pool=shipped", f"memory_budget={given}"]), tiny)
        system.prepare()
        return system.state(system.requests()[0])

    everything = recalled(None)
    assert everything.profile and len(everything.snippets) == 4
    enough = sum(len(text.encode()) for text in (everything.profile, *(s.text for s in everything.snippets[:2])))
    assert recalled(enough) == replace(everything, snippets=everything.snippets[:2])
    assert recalled(enough - 1) == replace(everything, snippets=everything.snippets[:1])
    assert recalled(1) == UserState()


def test_an_event_is_recalled_once_by_the_first_that_has_it() -> None:
    """Parts of one event that one memory gives all stay, as do events of one name that are others'."""
    parts = UserState(snippets=(Snippet("two", "a", "ada", weight=0.5), Snippet("parts", "a", "ada", weight=0.5)))
    whole = UserState(snippets=(Snippet("two parts", "a", "ada"), Snippet("b", "b", "ada"), Snippet("c", "a", "bob")))
    assert distinct([parts, whole, parts]) == [parts, replace(whole, snippets=whole.snippets[1:]), UserState()]
    assert distinct([whole, parts]) == [whole, UserState()]
    assert distinct(MEMBERS) == MEMBERS


def test_a_system_recalls_an_event_once_and_counts_it_once(tiny: Policy) -> None:
    """Two memories that both recall all of a user's choices recall what one of them does, under a budget too."""
    from personalign import compose
    from personalign.system import System

    def recalled(memory: str, budget: str) -> UserState:
        more = [f"memory.{name}.{key}" for name in memory.split(",") for key in ("k=9", "kinds=[choice]")]
        words = ["generation=retrieval_prompt", "data.pool=shipped", "data.history=4", f"memory_budget={budget}"]
        system = System(compose([f"memory=[{memory}]", *more, *words]), tiny)
        system.prepare()
        return system.state(system.requests()[0])

    newest = recalled("recency", "null")
    assert len(newest.snippets) == 4
    assert recalled("recency,bm25", "null") == newest
    exactly = sum(len(one.text.encode()) for one in newest.snippets)
    assert recalled("recency,bm25", str(exactly)) == newest
    later = recalled("bm25,recency", "null").snippets
    assert [one.event for one in later] == [one.event for one in recalled("bm25", "null").snippets]


def test_profiles_of_several_memories_stand_line_by_line() -> None:
    merged = reduce(UserState.merged, MEMBERS, UserState())
    assert merged.profile == "I like tea\nage: 34"
    assert [s.text for s in merged.snippets] == ["one", "two words", "a b c", "late"]
    assert UserState().merged(UserState()).profile is None
