"""What every memory holds to: time, idempotence, isolation, forgetting."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalign.contracts import UserError
from personalign.memory.log import EventMemory, text_of
from personalign.memory.recency import Recency
from personalign.types import Event, Request, UserState

TIMES = st.floats(0, 5) | st.sampled_from([0.0, 1.0, 2.0, float("inf")])


def test_no_history_is_an_empty_state(any_memory, request_of):
    memory = any_memory[0]()
    assert memory.recall(request_of(), None) == UserState()


def test_only_what_came_before_the_request_is_seen(any_memory, event, request_of):
    make, kind = any_memory
    memory = make()
    memory.observe(event("now", kind, time=2.0))
    memory.observe(event("later", kind, time=3.0))
    assert memory.recall(request_of(time=2.0), None) == UserState()
    unaware = make()
    for one in (memory, unaware):
        one.observe(event("before", kind, time=1.9))
    assert memory.recall(request_of(time=2.0), None) == unaware.recall(request_of(), None) != UserState()


def test_an_event_twice_changes_nothing(any_memory, event, request_of):
    make, kind = any_memory
    memory = make()
    memory.observe(event("a", kind, time=1.0))
    once = memory.recall(request_of(), None)
    memory.observe(event("a", kind, time=1.0))
    assert memory.recall(request_of(), None) == once
    assert len(memory.before(request_of())) == 1


def test_an_id_with_another_content_is_refused_and_changes_nothing(any_memory, event, request_of):
    make, kind = any_memory
    memory = make()
    memory.observe(event("a", kind, time=1.0))
    once = memory.recall(request_of(), None)
    with pytest.raises(UserError, match=r"event 'a' of user 'ada' came twice"):
        memory.observe(event("a", kind, time=1.5))
    assert memory.recall(request_of(), None) == once


def test_users_do_not_meet_even_with_equal_ids(any_memory, event, request_of):
    make, kind = any_memory
    memory = make()
    memory.observe(event("a", kind, user="ada"))
    alone = memory.recall(request_of(user="ada"), None)
    assert memory.recall(request_of(user="bo"), None) == UserState()
    memory.observe(event("a", kind, user="bo", time=1.0))
    assert memory.recall(request_of(user="ada"), None) == alone
    memory.forget("ada")
    assert memory.recall(request_of(user="ada"), None) == UserState()
    assert memory.recall(request_of(user="bo"), None) != UserState()


def test_forgetting_leaves_nothing(any_memory, event, request_of):
    make, kind = any_memory
    memory = make()
    empty = pickle.dumps(memory)
    memory.observe(event("secret-id", kind, user="secret-user"))
    memory.recall(request_of(user="secret-user"), None)
    assert b"secret" in pickle.dumps(memory)
    memory.forget("secret-user")
    assert pickle.dumps(memory) == empty
    memory.forget("secret-user")


def test_kinds_that_are_not_kept_leave_nothing(any_memory, event, request_of):
    make, kind = any_memory
    memory = make()
    memory.observe(event("a", "stance" if kind == "attribute" else "attribute"))
    assert memory.before(request_of()) == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("text", "a walk in the woods"),
        ("statement", "I like short answers."),
        ("choice", "What is tea?\nA drink."),
        ("rating", "What is rain?\nWater."),
        ("attribute", "age: 44"),
    ],
)
def test_text_of_each_kind(event, kind, text):
    assert text_of(event("a", kind)) == text


@pytest.mark.parametrize(
    ("kind", "payload", "missing"),
    [
        ("text", {"txt": "?"}, "text"),
        ("choice", {"prompt": "?"}, "chosen"),
        ("rating", {"rating": 3}, "response"),
    ],
)
def test_an_incomplete_event_is_named(event, kind, payload, missing):
    memory = Recency(k=1, kinds=["text", "choice", "rating"])
    with pytest.raises(UserError, match=rf"event 'a' of user 'ada' is a {kind} without .*{missing}"):
        memory.observe(event("a", kind, **payload))


def test_a_time_that_is_no_number_is_refused(event):
    with pytest.raises(UserError, match="has no time"):
        Recency(k=1, kinds=["text"]).observe(event("a", time=float("nan")))


@given(st.lists(TIMES, max_size=12), TIMES)
def test_before_is_the_stable_sort_of_what_is_earlier(times: list[float], now: float):
    class Kept(EventMemory):
        def recall(self, request, policy):
            return UserState()

    memory = Kept(["text"])
    events = [Event(id=str(i), user="u", time=t, kind="text", payload={"text": "x"}) for i, t in enumerate(times)]
    for e in events:
        memory.observe(e)
    earlier = sorted((e for e in events if e.time < now), key=lambda e: e.time)
    assert memory.before(Request(id="q", user="u", messages=(), time=now)) == earlier
