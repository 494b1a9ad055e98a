"""One adapter for all from users whose data stay with them: federated averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Literal, Unpack

from personalign.alignment.clients import Clients
from personalign.alignment.learner import Objective
from personalign.alignment.own import Likes, adapter_name, over_users, own_pairs
from personalign.alignment.stages import Adapted, AdaptedKeys
from personalign.alignment.training import Items, Lesson, nonempty, train
from personalign.contracts import Data, PositiveFloat, PositiveInt, Render
from personalign.plans import Deltas
from personalign.policy.reference import fingerprint
from personalign.runtime.seeds import derive
from personalign.types import Pair

if TYPE_CHECKING:
    from personalign.policy.logprobs import Branches
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class Federated(Adapted):
    """Federated averaging (FedAvg, arXiv 1602.05629, algorithm 1) of one LoRA adapter that serves everybody.

    In every round each client, a user, trains a copy of the shared adapter on their own pairs with an optimizer of
    their own; the shared one becomes the mean, weighted by how many rows each has. What is averaged is what the
    adapters do, B A, and not their factors, whose mean is another adapter's (see `policy.averaging`). With
    user_adapter behind it every user has a shared and a local adapter, as in FDLoRA (arXiv 2406.07925).
    """

    needs = ("pairs",)
    provides = ("policy.aligned",)
    paper = "arXiv 1602.05629, algorithm 1; 2402.11505 (mean of the deltas)"
    node = "alignment through feedback / training-time / federated"

    def __init__(
        self,
        *,
        rounds: PositiveInt,
        clients: PositiveInt | None,
        objective: Literal["dpo", "nll"],
        beta: PositiveFloat,
        history: bool,
        **adapted: Unpack[AdaptedKeys],
    ) -> None:
        super().__init__(**adapted)
        self.likes = Likes(objective, beta, self.limits)
        self.rounds, self.clients, self.history = rounds, clients, history

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        known = own_pairs(data, self.history, self.pairs)
        nonempty([pair for pairs in known.values() for pair in pairs], self.adapter)
        before = policy.spec.aligned
        told: Mapping[str, float] = {}
        for number in range(1, self.rounds + 1):
            drawn = {user: known[user] for user in self._drawn(list(known), fitting.seed, number)}
            told = train(policy, fitting, self._lesson(policy, drawn, render, number, before))
        policy.spec = replace(policy.spec, aligned=(*before, (self.adapter, 1.0)))
        return {"rounds": float(self.rounds), "steps": float(self.recipe.steps), **over_users([told])}

    def _drawn(self, users: Sequence[str], seed: int, number: int) -> list[str]:
        """The clients of a round, in the order of the users."""
        if self.clients is None or self.clients >= len(users):
            return list(users)
        chosen = Random(derive(seed, self.adapter, str(number))).sample(range(len(users)), self.clients)
        return [users[i] for i in sorted(chosen)]

    def _lesson(
        self, policy: Policy, pairs: Mapping[str, Sequence[Pair]], render: Render, number: int, before: Deltas
    ) -> Lesson:
        """One round. The copies are named by it, so that each round takes a user's rows in an order of its own."""
        title = f"{self.adapter}-{number}"
        rows = {adapter_name(title, user): self.likes.rows(policy, some, render) for user, some in pairs.items()}
        clients = Clients(self.adapters, shares(rows), first=number == 1)

        def prepare() -> tuple[Objective, Items]:
            return self.likes.over(policy, rows, before)

        start: Deltas = () if clients.first else ((self.adapter, 1.0),)
        content = ["federated", fingerprint(policy, before), fingerprint(policy, start), clients, self.likes, rows]
        return Lesson(title=title, trainee=clients, content=content, recipe=self.recipe, prepare=prepare)


def shares(rows: Mapping[str, Sequence[Branches]]) -> tuple[tuple[str, float], ...]:
    """n_k / n: every client's part of all rows (FedAvg, arXiv 1602.05629, algorithm 1)."""
    total = sum(map(len, rows.values()))
    return tuple((name, len(some) / total) for name, some in rows.items())
