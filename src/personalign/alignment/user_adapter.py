"""One adapter for each user, on top of the policy that all share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Unpack

from personalign.alignment.learner import Objective
from personalign.alignment.own import Likes, adapter_name, in_turn, own_pairs
from personalign.alignment.stages import Adapted, AdaptedKeys
from personalign.alignment.training import Items, Lesson
from personalign.contracts import Data, PositiveFloat, PositiveInt, Render, UserError
from personalign.policy.reference import fingerprint
from personalign.types import Pair

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class UserAdapter(Adapted):
    """One LoRA adapter a user, learned from that user's own pairs and choices alone (OPPU, arXiv 2402.04401).

    It lies on top of what the stages before made of the base for everybody: sft before it is OPPU's task adapter.
    A user with fewer than `min_pairs` pairs is served by the shared policy. `together` users are trained in one
    forward pass; none depends on another's data, which change at most the rounding and, with dropout, the draws.
    """

    needs = ("pairs",)
    provides = ("policy.own",)
    paper = "arXiv 2402.04401, section 3.2"
    node = "alignment through feedback / training-time / parameter-efficient"

    def __init__(
        self,
        *,
        objective: Literal["dpo", "nll"],
        beta: PositiveFloat,
        history: bool,
        min_pairs: PositiveInt,
        together: PositiveInt,
        **adapted: Unpack[AdaptedKeys],
    ) -> None:
        super().__init__(**adapted)
        self.likes = Likes(objective, beta, self.limits)
        self.history, self.min_pairs, self.together = history, min_pairs, together

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        known = own_pairs(data, self.history, self.pairs)
        served = {user: pairs for user, pairs in known.items() if len(pairs) >= self.min_pairs}
        if not served:
            raise UserError(
                f"no user has {self.min_pairs} or more pairs of their own, which user adapters are trained on: "
                "lower alignment.user_adapter.min_pairs"
            )
        names = {user: adapter_name(self.adapter, user) for user in served}

        def lesson(users: Sequence[str], number: int) -> Lesson:
            return self._lesson(policy, {names[user]: served[user] for user in users}, render, number)

        figures = in_turn(policy, fitting, list(served), self.together, lesson)
        policy.user_deltas |= {user: ((name, 1.0),) for user, name in names.items()}
        return {"steps": float(self.recipe.steps), **figures}

    def _lesson(self, policy: Policy, pairs: Mapping[str, Sequence[Pair]], render: Render, number: int) -> Lesson:
        """The training of some users' adapters, by name, from each one's pairs."""
        before = policy.spec.aligned
        rows = {name: self.likes.rows(policy, some, render) for name, some in pairs.items()}
        adapters = replace(self.adapters, names=tuple(rows))

        def prepare() -> tuple[Objective, Items]:
            return self.likes.over(policy, rows, before)

        content = ["user adapters", fingerprint(policy, before), adapters, self.likes, rows]
        title = f"{self.adapter}-{number}"
        return Lesson(title=title, trainee=adapters, content=content, recipe=self.recipe, prepare=prepare)
