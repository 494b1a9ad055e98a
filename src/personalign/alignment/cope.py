"""CoPe's DPO: each user's own adapter trained further, against answers that the model itself makes up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from personalign.alignment.batches import encode
from personalign.alignment.learner import Objective
from personalign.alignment.own import adapter_name, in_turn, own_pairs
from personalign.alignment.preference import Preference, items, references
from personalign.alignment.stages import Adapted, AdaptedKeys
from personalign.alignment.training import Items, Lesson
from personalign.contracts import Data, PositiveFloat, PositiveFraction, PositiveInt, Render, UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.plans import Deltas, Plan, Sampling, Stream, Tokens
from personalign.policy.logprobs import Branches
from personalign.policy.reference import fingerprint, sequence_logprobs
from personalign.runtime.seeds import derive
from personalign.types import Pair

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class CoPe(Adapted):
    """A further LoRA adapter a user, on top of the one that stage `user_adapter` gave them, by DPO: what the user chose
    over what the model makes up (CoPe, arXiv 2506.12109).

    The shared policy, without anything of the user's own, draws `samples` answers to each of the user's prompts; that
    of the lowest implicit reward, the mean over its tokens of log p_user - log p_shared, is the rejected one. DPO's
    reference is the shared policy too, as in the released code. There one adapter learns on; here two add up. Users
    without an adapter of their own stay without. `together` is as in `user_adapter`.
    """

    needs = ("pairs", "policy.own")
    provides = ("policy.own",)
    paper = "arXiv 2506.12109 (CoPe); its released code"
    node = "alignment through feedback / training-time / parameter-efficient"

    def __init__(
        self,
        *,
        samples: PositiveInt,
        temperature: PositiveFloat,
        top_p: PositiveFraction,
        made_tokens: PositiveInt,
        side_by_side: PositiveInt,
        beta: PositiveFloat,
        history: bool,
        together: PositiveInt,
        **adapted: Unpack[AdaptedKeys],
    ) -> None:
        super().__init__(**adapted)
        self.drawn = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=made_tokens, n=samples)
        self.beta, self.history, self.together, self.side_by_side = beta, history, together, side_by_side

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        known = own_pairs(data, self.history, self.pairs)
        served = {user: pairs for user, pairs in known.items() if user in policy.user_deltas}
        if not served:
            raise UserError(
                f"stage {self.adapter!r} trains the adapters of single users further, and no user with pairs has one: "
                "put alignment=user_adapter before it, with the same history"
            )
        names = {user: adapter_name(self.adapter, user) for user in served}

        def lesson(users: Sequence[str], number: int) -> Lesson:
            return self._lesson(policy, {user: served[user] for user in users}, names, render, number, fitting.seed)

        figures = in_turn(policy, fitting, list(served), self.together, lesson)
        policy.user_deltas |= {user: (*policy.user_deltas[user], (name, 1.0)) for user, name in names.items()}
        return {"steps": float(self.recipe.steps), **figures}

    def _lesson(
        self,
        policy: Policy,
        pairs: Mapping[str, Sequence[Pair]],
        names: Mapping[str, str],
        render: Render,
        number: int,
        seed: int,
    ) -> Lesson:
        """The training of some users' adapters, from each one's pairs."""
        shared, own = policy.spec.aligned, {names[user]: policy.user_deltas[user] for user in pairs}
        liked = {names[user]: self._liked(policy, some, render) for user, some in pairs.items()}
        adapters = replace(self.adapters, names=tuple(liked))
        drawn = replace(self.drawn, seed=derive(seed, self.adapter))

        def prepare() -> tuple[Objective, Items]:
            pseudo = PseudoNegatives(policy, shared, drawn, self.side_by_side)
            rows = {name: pseudo.against(name, some, own[name]) for name, some in liked.items()}
            deltas = {name: (*shared, *own[name], (name, 1.0)) for name in rows}
            return Preference(policy, rows, references(policy, rows, shared), deltas, self.beta), items(rows)

        before = [fingerprint(policy, (*shared, *deltas)) for deltas in own.values()]
        content = ["cope", before, adapters, self.beta, self.drawn, liked]
        title = f"{self.adapter}-{number}"
        return Lesson(title=title, trainee=adapters, content=content, recipe=self.recipe, prepare=prepare)

    def _liked(self, policy: Policy, pairs: Sequence[Pair], render: Render) -> list[Branches]:
        """What the user chose, each answer to a prompt once."""
        rows = encode(policy, pairs, render, self.limits)
        return list(dict.fromkeys(Branches(row.prompt, row.answers[:1]) for row in rows))


@dataclass(frozen=True, slots=True)
class PseudoNegatives:
    """Rejected answers made by the shared policy: of `drawn.n` draws the one that is least the user's."""

    policy: Policy
    shared: Deltas
    drawn: Sampling
    side_by_side: int

    def against(self, user: str, liked: Sequence[Branches], own: Deltas) -> list[Branches]:
        """Every row's answer, and behind it the made-up one. `user` names the random streams."""
        made = self._draw(user, liked)
        worst = self._rewards(made, own).argmin(1).tolist()
        return [
            Branches(row.prompt, (row.answers[0], draws.answers[least]))
            for row, draws, least in zip(liked, made, worst, strict=True)
        ]

    def _draw(self, user: str, liked: Sequence[Branches]) -> list[Branches]:
        """The draws for each prompt."""
        plans = [Plan((Stream((Tokens(row.prompt),), deltas=self.shared),), sampling=self.drawn) for row in liked]
        jobs = [Job(f"{user} {number}", plan) for number, plan in enumerate(plans)]
        found: dict[str, list[tuple[int, ...]]] = {job.request: [] for job in jobs}
        for response in Decoder(self.policy, self.side_by_side).generate(jobs):
            found[response.request].append(response.tokens)
        return [Branches(row.prompt, tuple(found[job.request])) for row, job in zip(liked, jobs, strict=True)]

    def _rewards(self, made: Sequence[Branches], own: Deltas) -> Tensor:
        """The mean over tokens of log p_user - log p_shared [rows, draws]."""
        lengths = torch.tensor([[len(answer) for answer in row.answers] for row in made])
        user, shared = (
            sequence_logprobs(self.policy, made, deltas, None, "made-up answers")
            for deltas in ((*self.shared, *own), self.shared)
        )
        return (user - shared) / lengths
