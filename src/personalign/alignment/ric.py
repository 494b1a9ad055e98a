"""Rewards in context: supervised fine-tuning on prompts that say which ratings the answer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Unpack

from personalign.alignment.batches import Item, answer_ids
from personalign.alignment.labels import occurring
from personalign.alignment.preference import Imitation, items
from personalign.alignment.stages import Adapted, AdaptedKeys
from personalign.alignment.training import Lesson, nonempty, share, train
from personalign.contracts import Data, Render, UserError
from personalign.policy.logprobs import Branches
from personalign.policy.reference import fingerprint
from personalign.policy.truncation import encode_within
from personalign.types import Pair, Request

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class Ric(Adapted):
    """One LoRA adapter by the likelihood of all answers, chosen and rejected, each on the prompt of a user who wants
    just its ratings (RiC, arXiv 2402.10207, offline stage; its online stages are not here).

    Ratings are standardised over the answers trained on. An answer that recurs counts once. Raises UserError where
    generation renders no ratings.
    """

    needs = ("pairs", "ratings", "prompt.targets")
    provides = ("policy.aligned",)
    paper = "arXiv 2402.10207, section 3 (offline stage)"
    node = "alignment through feedback / multi-objective / preference-guided"

    def __init__(self, *, dimensions: list[str] | None, **adapted: Unpack[AdaptedKeys]) -> None:
        super().__init__(**adapted)
        self.dimensions = dimensions

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        before = policy.spec.aligned
        after = (*before, (self.adapter, 1.0))
        found = nonempty(data.pairs("train"), self.adapter)
        dimensions = occurring((d for pair in found for d in pair.ratings), self.dimensions, "ric")
        rows = {self.adapter: self._rows(policy, standardised(rated(share(found, self.pairs), dimensions)), render)}

        def prepare() -> tuple[Imitation, dict[str, list[Item]]]:
            return Imitation(policy, rows, {self.adapter: after}), items(rows)

        content = ["ric", fingerprint(policy, before), self.adapters, rows[self.adapter]]
        lesson = Lesson(title=self.adapter, trainee=self.adapters, content=content, recipe=self.recipe, prepare=prepare)
        figures = train(policy, fitting, lesson)
        policy.spec = replace(policy.spec, aligned=after)
        return figures

    def _rows(self, policy: Policy, answers: Sequence[Rated], render: Render) -> list[Branches]:
        self.limits.check(policy)
        rows = []
        for answer in answers:
            messages = render(answer.request, answer.ratings)
            if messages == render(answer.request, {}):
                raise UserError(
                    "alignment=ric learns what ratings in a prompt mean, and generation puts none there: "
                    "use generation=ric"
                )
            prompt = encode_within(policy, messages, self.limits.max_prompt, answer.request.id)
            rows.append(Branches(tuple(prompt), (answer_ids(policy, answer.text, self.limits.max_answer),)))
        return list(dict.fromkeys(rows))


@dataclass(frozen=True, slots=True)
class Rated:
    """An answer to a request, with its ratings."""

    request: Request
    text: str
    ratings: Mapping[str, float]


def rated(pairs: Sequence[Pair], dimensions: Sequence[str]) -> list[Rated]:
    """Both answers of every pair that is rated on all dimensions, each once, whoever compared them."""
    found: dict[object, Rated] = {}
    for pair in pairs:
        if all(dimension in pair.ratings for dimension in dimensions):
            for place, text in enumerate((pair.chosen, pair.rejected)):
                ratings = {dimension: pair.ratings[dimension][place] for dimension in dimensions}
                found.setdefault((pair.request.messages, text), Rated(pair.request, text, ratings))
    if not found:
        raise UserError(
            f"no pair is rated on all of {', '.join(dimensions)}: "
            "set alignment.ric.dimensions to what is rated together"
        )
    return list(found.values())


def standardised(answers: Sequence[Rated]) -> list[Rated]:
    """The answers with ratings of mean 0 and standard deviation 1 over all of them; what never differs is 0."""
    values = {d: [answer.ratings[d] for answer in answers] for d in answers[0].ratings}
    units = {d: (fmean(some), pstdev(some) or 1.0) for d, some in values.items()}
    return [
        replace(answer, ratings={d: (r - units[d][0]) / units[d][1] for d, r in answer.ratings.items()})
        for answer in answers
    ]
