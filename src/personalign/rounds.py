"""The closed loop: users compare answers to requests they train on, and memory takes in what they say.

A round is one line of `rounds.jsonl` in the run's folder, written whole: a run that was killed asks nobody twice, and
goes on as if nothing had been. Held-out requests are never asked about; they come after all that was said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from typing import Any

import numpy as np

from personalign.answering import offer
from personalign.contracts import Data, UserError
from personalign.judging import true_scores
from personalign.results import Figure
from personalign.runtime.files import append_line, read_jsonl
from personalign.runtime.ranks import wait_for_all
from personalign.runtime.rundir import RunDir
from personalign.system import System
from personalign.types import Event, Pair, Request, Response, Stance

ROUNDS = "rounds.jsonl"
Line = dict[str, Any]
# Where a run stands on its curve: the round, the events that a user who is asked has given, the figures.
Point = dict[str, Any]


class Loop:
    """Rounds of feedback (survey, section 4.3): several answers to a training request, of which `query` picks two by
    what memory believes; `feedback` tells which of them the user likes better; memory takes that in.

    A round's answers are made at its beginning, and each of its questions is chosen with what the user said to those
    before. Every question is about another request. Users without training requests are not asked.
    """

    def __init__(self, system: System, run: RunDir) -> None:
        """Raises UserError where there are too few requests, or held-out ones do not come after the history."""
        self.system, self.run = system, run
        self.requests: dict[str, list[Request]] = {}
        self.cost: list[dict[str, Any]] = []
        self.told: list[Pair] = []
        self._events = 0
        self._regrets: list[tuple[str, float]] = []
        if system.cfg.rounds:
            for request in system.data.requests("train"):
                self.requests.setdefault(request.user, []).append(request)
            self._check_enough()
            self._check_order()

    def ask(self, ranks: int) -> None:
        """One round: rank 0 asks every user, unless a run before this one has; all ranks take in what came out."""
        if not self.system.clock:
            self.system.opened = {user: self._end(user) + 1.0 for user in self.requests}
            self.system.clock = dict(self.system.opened)
        if self.run.rank == 0 and self._line() is None:
            append_line(self.run.path / ROUNDS, json.dumps(self._asked(), ensure_ascii=False), fsync=True)
        wait_for_all(ranks)
        line = self._line()
        assert line is not None, "rank 0 has asked"
        self._take_in(line)

    def point(self, figures: Mapping[str, Figure], requests: Sequence[Request]) -> Point:
        """This round on the curve: the figures of its answers to the requests, and in a run with rounds two more.

        stance_error    1 - cos of the recalled stance and the true one of this round, where it is known; 1 where
                        nothing is recalled
        regret          of the questions of the round that led here: the best true reward among the answers to choose
                        from, less that of the one which memory took for the best before it asked
        """
        known = stance_errors(self.system, requests) if self.requests else []
        average = self.system.evaluation.average
        found = {**figures, "stance_error": average(known, "lower"), "regret": average(self._regrets, "lower")}
        return {
            "round": self.system.round,
            "events": self._events / max(1, len(self.requests)),
            "metrics": {name: asdict(figure) for name, figure in found.items() if figure.n},
        }

    def _check_enough(self) -> None:
        needed = self.system.cfg.rounds * self.system.cfg.asking.requests
        has = {user: len(requests) for user, requests in self.requests.items()} or {"nobody": 0}
        user = min(has, key=lambda name: has[name])
        if has[user] < needed:
            raise UserError(
                f"rounds={self.system.cfg.rounds} of asking.requests={self.system.cfg.asking.requests} need {needed} "
                f"training requests of every user who is asked, and {user} has {has[user]}: lower one of them"
            )

    def _check_order(self) -> None:
        """Held-out requests are to come after what is said in the loop, which comes after the history."""
        pairs = self.system.data.pairs("test") if self.system.guide is not None else ()
        for request in (*self.system.requests(), *(pair.request for pair in pairs)):
            if request.user in self.requests and request.time <= self._end(request.user):
                raise UserError(
                    f"request {request.id!r} of user {request.user!r} is asked before the end of their history, and in "
                    "a closed loop after it: leave out the later events, or set rounds=0"
                )

    def _end(self, user: str) -> float:
        """The time of the user's last event in the data."""
        return max((event.time for event in self.system.data.events(user)), default=0.0)

    def _now(self, request: Request) -> Request:
        """The request as it is asked: after all that its user has said until now."""
        return replace(request, time=self.system.clock[request.user])

    def _line(self) -> Line | None:
        """What was asked in this round; None before that is known."""
        path = self.run.path / ROUNDS
        lines = read_jsonl(path) if path.is_file() else []
        return next((line for line in lines if line["round"] == self.system.round), None)

    def _asked(self) -> Line:
        """Ask every user, memory taking in each answer before the next question."""
        asking = self.system.cfg.asking
        numbers = range(self.system.round * asking.requests, (self.system.round + 1) * asking.requests)
        asked = [(number, mine[number]) for mine in self.requests.values() for number in numbers]
        sampling = replace(self.system.sampling, n=asking.answers, temperature=asking.temperature)
        made, cost = offer(self.system, [self._now(request) for _, request in asked], sampling, asking.by)
        questions = [
            self._question(request, number, list(dict.fromkeys(response.text for response in some)))
            for (number, request), some in zip(asked, made, strict=True)
        ]
        return {"round": self.system.round, "questions": questions, "cost": asdict(cost)}

    def _question(self, request: Request, number: int, texts: Sequence[str]) -> dict[str, Any]:
        """Which of the answers memory takes for the best, and what the user says to the two that query picks, where
        there are two."""
        events: list[Event] = []
        question = {"request": request.id, "user": request.user, "answers": list(texts), "believed": 0}
        if len(texts) > 1:
            belief, pairs = self.system.belief(self._now(request), texts), list(combinations(range(len(texts)), 2))
            question["believed"] = int(np.argmax(belief.ratings @ belief.mean))
            first, second = np.array(pairs).T
            differences = belief.ratings[first] - belief.ratings[second]
            assert self.system.query is not None, "rounds need a query"
            row = self.system.query.choose(request.user, number, differences, belief.mean, belief.covariance)
            events = self._answered(request, [texts[i] for i in pairs[row]])
        return {**question, "events": [asdict(event) for event in events]}

    def _answered(self, request: Request, shown: Sequence[str]) -> list[Event]:
        """What the user does, in their own time: never before what they did until now."""
        responses = [
            Response(request=request.id, text=text, sample=n, round=self.system.round) for n, text in enumerate(shown)
        ]
        said = self.system.feedback.events(request, responses)
        now = self.system.clock[request.user]
        events = [replace(event, time=max(event.time, now)) for event in said]
        self._observe(events)
        return events

    def _observe(self, events: Sequence[Event]) -> None:
        """Memory takes events in, and their users' clocks go past them."""
        self.system.observe(events)
        for event in events:
            self.system.clock[event.user] = max(self.system.clock[event.user], event.time + 1.0)

    def _take_in(self, line: Line) -> None:
        """Observe what was said in this round, note what the answers were worth, and go on to the next round."""
        by_id = {request.id: request for mine in self.requests.values() for request in mine}
        asked = [(by_id[question["request"]], question["answers"]) for question in line["questions"]]
        self._regrets = [
            (question["user"], max(score.total for score in scores) - scores[question["believed"]].total)
            for question, scores in zip(line["questions"], true_scores(self.system, asked), strict=True)
            if scores
        ]
        for (request, _), question in zip(asked, line["questions"], strict=True):
            events = [Event(**event) for event in question["events"]]
            self._observe(events)
            self._events += len(events)
            self.told += [_pair(request, event) for event in events if event.kind == "choice"]
        self.cost.append(line["cost"])
        self.system.round += 1


class Told(Data):
    """Data whose users have told more. Their training pairs come first, since a stage may stop before the last."""

    def __init__(self, data: Data, told: Sequence[Pair]) -> None:
        self._data, self._told = data, told

    def users(self) -> Sequence[str]:
        return self._data.users()

    def events(self, user: str) -> Sequence[Event]:
        return self._data.events(user)

    def requests(self, split: str) -> Sequence[Request]:
        return self._data.requests(split)

    def pairs(self, split: str) -> Sequence[Pair]:
        return [*(self._told if split == "train" else ()), *self._data.pairs(split)]

    def fingerprint(self) -> str:
        return self._data.fingerprint()


def _pair(request: Request, event: Event) -> Pair:
    """A choice as something to train on, with what was known before it was made; nobody has labelled it."""
    request = replace(request, time=event.time)
    return Pair(id=event.id, request=request, chosen=event.payload["chosen"], rejected=event.payload["rejected"])


def stance_errors(system: System, requests: Sequence[Request]) -> list[tuple[str, float]]:
    """(user, 1 - cos of the recalled and the true stance) by request, where the truth is known."""
    found = []
    for request in requests:
        true, recalled = system.true_state(request), system.state(request)
        if true is not None and true.stance is not None:
            found.append((request.user, 1.0 - cosine(recalled.stance, true.stance)))
    return found


def cosine(one: Stance | None, other: Stance) -> float:
    """Of two stances over all their dimensions; 0 where one of them is 0 or unknown."""
    mine, theirs = ({} if one is None else one.as_dict()), other.as_dict()
    size = math.hypot(*mine.values()) * math.hypot(*theirs.values())
    return sum(p * theirs.get(name, 0.0) for name, p in mine.items()) / size if size else 0.0
