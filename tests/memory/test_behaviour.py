"""Choices and ratings in words: which are recalled, what is said of them, and what reads them."""

from __future__ import annotations

from typing import Any

import pytest

from personalign.contracts import UserError
from personalign.generation.in_context import InContext
from personalign.memory.behaviour import Behaviour
from personalign.memory.bm25 import BM25
from personalign.types import Message, UserState

TOLD = {"choice": "{prompt} | {chosen} > {rejected}", "rating": "{prompt} | {response} = {rating}"}


def made(**changes: Any) -> Behaviour:
    return Behaviour(**{"k": 3, "by": "recency", "k1": 1.5, "b": 0.75, **TOLD, **changes})


def fed(memory: Any, event: Any) -> Any:
    told = [
        ("tea", "choice", {"prompt": "Which tea?", "chosen": "Green.", "rejected": "Black."}),
        ("rain", "rating", {"prompt": "What is rain?", "response": "Water.", "rating": 4.5}),
        ("cats", "choice", {"prompt": "Do cats sing?", "chosen": "Some.", "rejected": "No."}),
        ("dogs", "rating", {"prompt": "Do dogs sing?", "response": "No.", "rating": 0}),
        ("note", "text", {"text": "Green tea."}),
    ]
    for time, (id, kind, payload) in enumerate(told):
        memory.observe(event(id, kind, time=float(time), **payload))
    return memory


def test_the_newest_choices_and_ratings_in_words(event, request_of):
    state = fed(made(), event).recall(request_of("Green tea?"), None)
    assert [s.text for s in state.snippets] == [
        "Do dogs sing? | No. = 0",
        "Do cats sing? | Some. > No.",
        "What is rain? | Water. = 4.5",
    ]
    assert [(s.event, s.owner) for s in state.snippets] == [("dogs", "ada"), ("cats", "ada"), ("rain", "ada")]
    earlier = fed(made(), event).recall(request_of(time=1.0), None)
    assert [s.event for s in earlier.snippets] == ["tea"]


def test_the_most_similar_ones_are_those_of_bm25(event, request_of):
    ask = request_of("Green tea in the rain?")
    state = fed(made(k=2, by="similarity"), event).recall(ask, None)
    index = fed(BM25(k=2, k1=1.5, b=0.75, kinds=["choice", "rating"]), event).recall(ask, None)
    assert [(s.event, s.score) for s in state.snippets] == [(s.event, s.score) for s in index.snippets]
    assert [s.event for s in state.snippets] == ["tea", "rain"] and state.snippets[0].score > 0


def test_a_template_may_leave_out_what_was_rejected_and_braces_stay_text(event, request_of):
    memory = made(choice="{prompt} {chosen}")
    memory.observe(event("a", "choice", prompt="{chosen}", chosen=" {rating} ", rejected="B"))
    assert [s.text for s in memory.recall(request_of(), None).snippets] == ["{chosen} {rating}"]


@pytest.mark.parametrize(
    ("kind", "payload", "lacking"),
    [
        ("choice", {"prompt": "?", "chosen": "A"}, "without rejected, which memory=behaviour tells"),
        ("rating", {"prompt": "?", "response": "A"}, "without rating, which memory=behaviour tells"),
        ("rating", {"prompt": "?", "rating": 1}, "without response: its payload needs prompt and response"),
    ],
)
def test_half_a_signal_is_refused_and_not_kept(event, request_of, kind, payload, lacking):
    memory = made()
    with pytest.raises(UserError, match=lacking):
        memory.observe(event("a", kind, **payload))
    assert memory.recall(request_of(), None) == UserState()


def test_a_wrong_template_is_named():
    with pytest.raises(UserError, match=r"lacks \{rating\}"):
        made(rating="{prompt} {response}")


def test_choices_serve_as_examples_too(event, request_of):
    state = fed(made(), event).recall(request_of(), None)
    shown = InContext(form="turns", template="{examples}", example="{prompt}{chosen}", budget=99)
    turns = shown.render(request_of("Any news?"), state)
    assert turns == (Message("user", "Do cats sing?"), Message("assistant", "Some."), Message("user", "Any news?"))
