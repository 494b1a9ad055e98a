"""A simulated user: the law of the answers, what they may not depend on, drift, and mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from personalign.composition.build import build
from personalign.composition.compose import compose
from personalign.contracts import UserError
from personalign.feedback.simulated import SimulatedUser
from personalign.types import Message, Request, Response, Score, Stance, UserState

TRUTH = Stance(("a", "b", "c"), (0.5, -1.0, 0.25))
RATINGS = {"left": {"a": 1.0}, "right": {"b": 0.5, "c": 0.4}, "other": {"a": -1.0, "c": 2.0}}


class Rated:
    """A reward that knows the texts above."""

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        assert state.stance is not None
        return [Score(state.stance.dot(RATINGS[text]), RATINGS[text]) for text in responses]


def simulated(truth: Stance | None = TRUTH, **changes: Any) -> SimulatedUser:
    user = SimulatedUser(
        **{"beta": 1.0, "noise": 0.0, "drift": 0.0, "dimensions": [], "start": 0.0, "seed": 0, **changes}
    )
    known = SimpleNamespace(truth=lambda request: None if truth is None else UserState(stance=truth))
    user.bind(known, Rated())  # type: ignore[arg-type]
    return user


def ask(user: str = "ada", id: str = "q") -> Request:
    return Request(id=id, user=user, messages=(Message("user", "Which?"),))


def shown(*texts: str, round: int = 0) -> list[Response]:
    return [Response(request="q", text=text, sample=n, round=round) for n, text in enumerate(texts)]


def chosen(user: SimulatedUser, *texts: str, round: int = 0, request: Request | None = None) -> str:
    (event,) = user.events(request or ask(), shown(*texts, round=round))
    assert {event.payload["chosen"], event.payload["rejected"]} == set(texts)
    return str(event.payload["chosen"])


@pytest.mark.parametrize(("beta", "noise"), [(1.0, 0.0), (3.0, 0.0), (3.0, 0.2), (0.5, 1.0)])
def test_the_share_of_choices_is_the_models(beta: float, noise: float) -> None:
    """4000 rounds: a share's standard error is at most .0079; 4.5 of it."""
    user, rounds = simulated(beta=beta, noise=noise), 4000
    share = np.mean([chosen(user, "left", "right", round=n) == "left" for n in range(rounds)])
    p = 1 / (1 + math.exp(-beta * (0.5 - (-0.5 + 0.1))))
    assert share == pytest.approx(p * (1 - noise) + (1 - p) * noise, abs=4.5 * 0.5 / math.sqrt(rounds))


def test_answers_depend_on_seed_user_round_and_request_but_on_no_order() -> None:
    asked = [(who, n, id) for who in ("ada", "bo") for n in range(40) for id in ("q", "r")]

    def answers(user: SimulatedUser, order: Sequence[int], *texts: str) -> list[str]:
        found = {i: chosen(user, *texts, round=asked[i][1], request=ask(asked[i][0], asked[i][2])) for i in order}
        return [found[i] for i in range(len(asked))]

    straight = answers(simulated(noise=0.1), range(len(asked)), "left", "right")
    back = list(reversed(range(len(asked))))
    assert answers(simulated(noise=0.1), back, "right", "left") == straight
    assert answers(simulated(noise=0.1, seed=1), back, "left", "right") != straight
    by_user = [[a for a, (who, _, _) in zip(straight, asked, strict=True) if who == name] for name in ("ada", "bo")]
    by_request = [[a for a, (_, _, id) in zip(straight, asked, strict=True) if id == name] for name in ("q", "r")]
    assert by_user[0] != by_user[1] and by_request[0] != by_request[1] and len(set(by_user[0])) == 2


def test_the_event_is_a_choice_at_the_time_of_its_round() -> None:
    user = simulated(start=10.0)
    (event,) = user.events(ask(), shown("left", "right", round=3))
    assert (event.kind, event.time, event.user, event.payload["prompt"]) == ("choice", 13.0, "ada", "Which?")
    others = [shown("left", "right", round=4), shown("left", "other", round=3)]
    ids = {event.id, *(user.events(ask(), pair)[0].id for pair in others), user.events(ask(id="r"), others[1])[0].id}
    assert len(ids) == 4
    assert user.events(ask(), shown("left", "right", round=3)) == [event]
    assert user.events(ask(), shown("left", "left")) == []


def test_drift_turns_the_stance_by_its_angle_and_keeps_its_length() -> None:
    user, w = simulated(drift=0.1), np.array(TRUTH.mean)
    turned = np.array([user.stance(ask(), n).mean for n in range(20)])
    assert turned[0] == pytest.approx(w)
    assert np.linalg.norm(turned, axis=1) == pytest.approx(np.linalg.norm(w))
    assert turned @ w / (w @ w) == pytest.approx(np.cos(0.1 * np.arange(20)))
    assert np.linalg.matrix_rank(turned, tol=1e-9) == 2
    assert not np.allclose(turned[5], user.stance(ask("bo"), 5).mean)
    assert user.stance(ask(id="another"), 5).mean == tuple(turned[5])
    half = simulated(drift=math.pi, beta=50.0)
    assert [chosen(half, "left", "right", round=n) for n in range(3)] == ["left", "right", "left"]


def test_a_stance_may_turn_to_dimensions_it_did_not_have() -> None:
    """In two dimensions there is one plane."""
    turned = simulated(Stance(("a",), (1.0,)), drift=0.25 * math.pi, dimensions=["a", "b"]).stance(ask(), 2).as_dict()
    assert turned["a"] == pytest.approx(0.0, abs=1e-12) and abs(turned["b"]) == pytest.approx(1.0)


def test_a_user_without_likes_does_not_turn() -> None:
    none = Stance(("a", "b"), (0.0, 0.0))
    assert simulated(none, drift=0.3).stance(ask(), 4).mean == (0.0, 0.0)


def test_plain_errors() -> None:
    for texts in (("left",), ("left", "right", "other")):
        with pytest.raises(UserError, match="compares two answers of one round"):
            simulated().events(ask(), shown(*texts))
    with pytest.raises(UserError, match=r"rounds \[0, 1\]"):
        simulated().events(ask(), [*shown("left"), *shown("right", round=1)])
    with pytest.raises(UserError, match="'ada' has no true stance"):
        simulated(None).events(ask(), shown("left", "right"))
    with pytest.raises(UserError, match="one dimension, which cannot turn: name another one"):
        simulated(Stance(("a",), (1.0,)), drift=0.1).stance(ask(), 1)
    user = simulated()
    user.bind(SimpleNamespace(truth=lambda request: UserState(stance=TRUTH)), None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs the true reward: reward@truth=exact"):
        user.events(ask(), shown("left", "right"))


def test_a_sure_user_agrees_with_the_pairs_that_the_data_label() -> None:
    """exact_users without noise chooses the better answer; so does a user of large beta, half a turn later never."""
    words = ["feedback.beta=1e4", f"feedback.drift={math.pi}", "feedback.dimensions=[grade,warmth]"]
    cfg = compose(["feedback=simulated", *words, "data.pool=shipped"])
    data, truth, user = build(cfg.data), build(cfg.truth), build(cfg.feedback)
    data.bind(truth, None)
    user.bind(data, truth)
    pairs = data.pairs("test")
    assert len(pairs) > 20
    for pair in pairs:
        texts = (pair.rejected, pair.chosen)
        assert [chosen(user, *texts, round=n, request=pair.request) for n in (0, 1)] == [pair.chosen, pair.rejected]
