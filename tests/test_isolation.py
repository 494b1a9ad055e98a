"""No user is ever shown a text of another: all memories, all prompts, events and requests of users in any order.

Every text of an event carries a mark of its user. Marks are looked for in all that memory recalls and all that
generation makes of it; and what is recalled of a user is what would be if there were no other.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from personalign import compose
from personalign.composition import home
from personalign.composition.build import build
from personalign.composition.parts import PartView, catalogue
from personalign.contracts import Generation, Memory
from personalign.memory.recency import Recency
from personalign.plans import PolicySpec
from personalign.ratings.dimensions import DIMENSIONS
from personalign.system import System
from personalign.types import EVENT_KINDS, Event, Message, Request, Response, Score, UserState

USERS = ("ana", "Ana", "an")  # one mistaken for another by case or prefix would show
SPEC = PolicySpec(
    aligned=(("dpo", 1.0),),
    features={name: ((f"pad_{name}", 1.0),) for name in DIMENSIONS},
    vectors={name: ((f"to_{name}", 1.0),) for name in DIMENSIONS},
    heads=("value",),
)
# What a workflow may have said so far.
SAID = [Response(request="of a user", text=f"step {n}", sample=n, score=Score(0.0)) for n in range(4)]


def views(group: str) -> list[PartView]:
    """The choices of a group that do without a trained policy."""
    found = [view for view in catalogue() if view.group == group and view.target is not None]
    return [view for view in found if not any(need.startswith("policy.heads") for need in view.needs)]


# They read or write with a network, and have such tests of their own.
NETWORKS = {"cos_lambda", "dense", "drift_weights", "history_vectors", "summary"}
MEMORIES = [view.choice for view in views("memory") if view.choice not in NETWORKS]
# Ratings are asked for by dimension, and random stances name others; it shows nothing of anybody's texts.
GENERATIONS = [view.choice for view in views("generation") if view.choice != "ric"]


TRAINED = {v.choice for v in views("generation") if any(need.startswith("policy.") for need in v.needs)}


@cache
def values(group: str, choice: str) -> dict[str, Any]:
    """A part's node as a composition has it."""
    whole = OmegaConf.load(home.home() / "conf" / "config.yaml")
    whole["part"] = OmegaConf.load(home.choices(group)[choice])
    return dict(OmegaConf.to_container(whole.part, resolve=True))  # type: ignore[arg-type]


def made(group: str, choice: str) -> Any:
    return build(values(group, choice))


def mark(user: str, number: int = 0) -> str:
    return f"zq{USERS.index(user)}x{number}qz"


def payload(kind: str, user: str, number: int) -> dict[str, Any]:
    said = mark(user, number)
    return {
        "text": {"text": f"I wrote {said} today."},
        "statement": {"text": f"I like {said}."},
        "choice": {"prompt": f"Which {said}?", "chosen": f"The good {said}!", "rejected": f"No {said}, sadly."},
        "rating": {"prompt": f"How is {said}?", "response": f"So {said}.", "rating": number % 5},
        "attribute": {"name": f"job{number % 2}", "value": said},
        "stance": {"stance": {"warmth": (number % 20) / 20, "length": -0.5}},
    }[kind]


def event(kind: str, user: str, number: int, time: float) -> Event:
    """Ids are the user's own, so that two users have the same ones."""
    return Event(id=str(number), user=user, time=time, kind=kind, payload=payload(kind, user, number))  # type: ignore[arg-type]


def request(user: str, time: float) -> Request:
    return Request(id=f"of {user}", user=user, time=time, messages=(Message("user", "What is tea?"),))


def shown(memories: Sequence[Memory], generation: Generation, asked: Request) -> tuple[UserState, list[Any]]:
    """What is recalled for a request, and with it all that is made of it before a model is run."""
    state = reduce(UserState.merged, [memory.recall(asked, None) for memory in memories], UserState())
    steps = [
        generation.first(asked, state, SPEC),
        *(generation.next(asked, state, SAID[:n], SPEC) for n in range(1, 5)),
    ]
    return state, [state, generation.render(asked, state), generation.plan(asked, state, SPEC), steps]


def strangers(user: str, things: Sequence[Any]) -> set[str]:
    """The marks of other users in all that is shown to one."""
    return {other for other in re.findall(r"zq(\d)x\d+qz", repr(things)) if USERS[int(other)] != user}


steps = st.lists(
    st.tuples(st.sampled_from(("event", "event", "event", "request", "forget")), st.sampled_from(USERS),
              st.sampled_from(EVENT_KINDS), st.integers(0, 5)),
    max_size=30,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(MEMORIES), min_size=1, max_size=4, unique=True), st.sampled_from(GENERATIONS), steps)
def test_no_user_is_shown_what_another_did(
    chosen: list[str], generation: str, happened: list[tuple[str, str, str, int]]
) -> None:
    answer = made("generation", generation)
    together = [made("memory", choice) for choice in chosen]
    alone = {user: [made("memory", choice) for choice in chosen] for user in USERS}
    for number, (step, user, kind, time) in enumerate(happened):
        for memory in (*together, *alone[user]):
            if step == "event":
                memory.observe(event(kind, user, number, time))
            elif step == "forget":
                memory.forget(user)
        if step == "request":
            check(together, alone[user], answer, request(user, time))
    for user in USERS:
        check(together, alone[user], answer, request(user, float("inf")))


def check(together: Sequence[Memory], alone: Sequence[Memory], generation: Generation, asked: Request) -> None:
    state, things = shown(together, generation, asked)
    assert strangers(asked.user, things) == set()
    assert state == shown(alone, generation, asked)[0], "another user changed what is recalled"


@pytest.mark.parametrize("choice", MEMORIES)
def test_a_user_s_own_marks_are_shown(choice: str) -> None:
    """Without this the test above would pass where nothing is ever shown."""
    memory = made("memory", choice)
    for number, kind in enumerate(EVENT_KINDS):
        memory.observe(event(kind, "ana", number, number))
    state = memory.recall(request("ana", float("inf")), None)
    assert state != UserState()
    if state.snippets or state.profile:
        assert "zq0x" in repr(state)


def test_a_leak_would_be_seen() -> None:
    class Leaky(Recency):
        def recall(self, request: Request, policy: Any) -> UserState:
            everyone = itertools.chain(*self._timeline.values())
            return UserState(profile=" ".join(event.payload["text"] for event in everyone))

    memory, alone = (Leaky(k=3, kinds=["text"]) for _ in range(2))
    memory.observe(event("text", "Ana", 0, 0.0))
    prompt = made("generation", "preference_prompt")
    assert strangers("ana", shown([memory], prompt, request("ana", 1.0))[1]) == {"1"}
    with pytest.raises(AssertionError):
        check([memory], [alone], prompt, request("ana", 1.0))


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two users with events of every kind, in files."""
    folder = tmp_path / "people"
    folder.mkdir()
    users = [{"id": user, "truth": {"warmth": 1.0}} for user in USERS[:2]]
    events = [
        {"user": user, "kind": kind, "time": n, **payload(kind, user, n)}
        for n, kind in enumerate(EVENT_KINDS)
        for user in USERS[:2]
    ]
    requests = [{"user": user, "prompt": f"Tell me, {mark(user)}.", "split": "test"} for user in USERS[:2]]
    for name, rows in {"users": users, "events": events, "requests": requests}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("generation", [one for one in GENERATIONS if one not in TRAINED])
def test_the_plans_of_a_whole_composition(generation: str, people: Path, tmp_path: Path, tiny: Any) -> None:
    """With all memories at once, from the data's files to the plan that is decoded."""
    words = ["model=tiny", "data=jsonl", f"data.path={people}", f"generation={generation}", "reward@truth=none"]
    cfg = compose([*words, f"memory=[{','.join(MEMORIES)}]", f"paths.cache={tmp_path}"])
    system = System(cfg, tiny)
    system.prepare()
    for asked in system.requests():
        plan = system.plan(asked)
        assert strangers(asked.user, [plan, system.state(asked)]) == set()
        assert mark(asked.user) in repr(plan)
