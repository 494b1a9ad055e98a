"""What one user's own data teach: pairs and choices, the objective made of them, and the name of the adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from personalign.alignment.batches import Limits, encode
from personalign.alignment.learner import Objective
from personalign.alignment.preference import Imitation, Preference, Rows, items, references
from personalign.alignment.training import Items, Lesson, train
from personalign.contracts import Data, Render
from personalign.plans import Deltas
from personalign.policy.logprobs import Branches
from personalign.policy.policy import Policy
from personalign.runtime.files import content_hash
from personalign.runtime.fitting import Fitting
from personalign.types import Message, Pair, Request


@dataclass(frozen=True, slots=True)
class Likes:
    """How pairs are learned from: DPO over both answers, against the policy as it stands, or the likelihood (`nll`) of
    the chosen answer alone."""

    objective: Literal["dpo", "nll"]
    beta: float
    limits: Limits

    def rows(self, policy: Policy, pairs: Sequence[Pair], render: Render) -> list[Branches]:
        """What is read of the pairs; for `nll` an answer that was chosen twice to one prompt counts once."""
        encoded = encode(policy, pairs, render, self.limits)
        if self.objective == "dpo":
            return encoded
        return list(dict.fromkeys(Branches(row.prompt, row.answers[:1]) for row in encoded))

    def over(self, policy: Policy, rows: Rows, before: Deltas) -> tuple[Objective, Items]:
        """The objective of adapters by name, each over its own rows and on top of `before`; all in one forward pass."""
        deltas = {name: (*before, (name, 1.0)) for name in rows}
        if self.objective == "nll":
            return Imitation(policy, rows, deltas), items(rows)
        return Preference(policy, rows, references(policy, rows, before), deltas, self.beta), items(rows)


def own_pairs(data: Data, history: bool, limit: int | None) -> dict[str, list[Pair]]:
    """Every user's own pairs of the train split, and behind them, with `history`, the choices among their events; each
    once, at most `limit` of them. Users without any are left out."""
    found: dict[str, dict[object, Pair]] = {}
    for pair in [*data.pairs("train"), *(_choices(data) if history else ())]:
        key = (pair.request.messages, pair.chosen, pair.rejected)
        found.setdefault(pair.request.user, {}).setdefault(key, pair)
    return {user: list(pairs.values())[:limit] for user, pairs in found.items()}


def _choices(data: Data) -> Iterator[Pair]:
    """The choices that users had made before the first request that they are tested on, as recall sees them."""
    first: dict[str, float] = {}
    for request in data.requests("test"):
        first[request.user] = min(request.time, first.get(request.user, float("inf")))
    for user in data.users():
        for event in data.events(user):
            if event.kind == "choice" and event.time < first.get(user, float("inf")):
                said = event.payload
                asked = Request(
                    id=f"choice {event.id}",
                    user=user,
                    messages=(Message("user", said["prompt"]),),
                    time=event.time,
                    split="train",
                )
                yield Pair(id=event.id, request=asked, chosen=said["chosen"], rejected=said["rejected"])


def adapter_name(prefix: str, user: str) -> str:
    """The name of a user's adapter, and of its folder: ids of users may hold any characters, file names may not."""
    return f"{prefix}-{content_hash(user)[:16]}"


def in_turn(
    policy: Policy,
    fitting: Fitting,
    users: Sequence[str],
    together: int,
    lesson: Callable[[Sequence[str], int], Lesson],
) -> dict[str, float]:
    """Teach all users, `together` of them in a lesson, which is made of them and its number, from 1. Where one fails,
    what the lessons before it have trained leaves the policy. Returns the means of the figures."""
    told = []
    with ExitStack() as undo:
        for number, start in enumerate(range(0, len(users), together), start=1):
            one = lesson(users[start : start + together], number)
            told.append(train(policy, fitting, one))
            undo.callback(one.trainee.discard, policy)
        undo.pop_all()
    return {"users": float(len(users)), **over_users(told)}


def over_users(told: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means over users of what trainings of several users, `<adapter>/<figure>`, or of a single one came to."""
    values: dict[str, list[float]] = {}
    for figures in told:
        several = any("/" in name for name in figures)
        for name, value in figures.items():
            if name != "steps" and ("/" in name) == several:
                values.setdefault(name.rpartition("/")[2], []).append(value)
    return {name: sum(some) / len(some) for name, some in values.items()}
