"""Direct preference optimisation of several objectives at once, weighed linearly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Unpack

from torch import tensor

from personalign.alignment.conditioned import Aim, Conditioned, ConditionedKeys, Margins, Weights
from personalign.alignment.stance_head import feature_margins
from personalign.contracts import PositiveFloat, UserError
from personalign.policy.logprobs import Branches
from personalign.policy.policy import Policy
from personalign.policy.reference import fingerprint
from personalign.types import Pair


class Modpo(Conditioned):
    """MODPO with the pairs' labels as the other objectives' rewards, for any number of objectives (arXiv 2310.03708).

    -log sigma((beta m - sum_{j != k} w_j (r_j(chosen) - r_j(rejected))) / |w_k|) on pairs that are ordered by
    w_k r_k, with r_j = scale x rating. The paper trains one policy for one w; here one policy serves all, as its
    adapters are mixed by w, which is drawn. Where the paper fixes k, it is here the objective of the largest |w_k|,
    since the loss is singular at w_k = 0: so 1 / |w_k| <= K. A negative weight asks for less of its dimension, and
    the same algebra holds.
    """

    needs: ClassVar[tuple[str, ...]] = ("pairs", "labels")
    provides = ("policy.features",)
    paper = "arXiv 2310.03708, section 3; its released code; mixing by w: arXiv 2407.15762"
    node = "alignment through feedback / multi-objective / direct objective-space optimization"
    stage = "modpo"

    def __init__(self, *, scale: PositiveFloat, **conditioned: Unpack[ConditionedKeys]) -> None:
        super().__init__(**conditioned)
        self.scale = scale

    def told(self, pair: Pair) -> Mapping[str, object]:
        return pair.labels

    def aim(self, pair: Pair, dimensions: Sequence[str], weights: Weights) -> Aim | None:
        k = max(range(len(weights)), key=lambda i: abs(weights[i]))
        gap = pair.labels.get(dimensions[k], 0.0)
        if gap == 0.0 or abs(gap) < self.min_gap:
            return None
        ordered = pair if gap * weights[k] > 0 else pair.swapped()
        return Aim(ordered, weights, abs(weights[k]), (*weights[:k], 0.0, *weights[k + 1 :]))

    def margins(self, policy: Policy, rows: Sequence[Branches], aims: Sequence[Aim], known: Sequence[str]) -> Margins:
        found = [self.scale * _weighed(aim, known) for aim in aims]
        return found, lambda: tensor(found)


def _weighed(aim: Aim, known: Sequence[str]) -> float:
    """The labels that the margin is made of, weighed. Raises UserError for one that the pair lacks."""
    wanted = {dimension: w for dimension, w in zip(known, aim.others, strict=True) if w}
    for dimension in wanted:
        if dimension not in aim.pair.labels:
            raise UserError(
                f"pair {aim.pair.id!r} has no label of {dimension!r}, which the margin of alignment=modpo is made of: "
                "leave it out of alignment.modpo.dimensions, or use alignment=[pad,modpo_features]"
            )
    return sum(w * aim.pair.labels[dimension] for dimension, w in wanted.items())


class ModpoFeatures(Modpo):
    """MODPO with implicit rewards as the other objectives', as in its paper: r_j = scale (log pihat_j - log p_ref),
    the features that another stage has trained before, such as pad; `scale` is that stage's beta.

    Raises UserError where a dimension has no feature. Its own features take their place.
    """

    needs = ("pairs", "labels", "policy.features")
    provides = ("policy.features",)
    paper = "arXiv 2310.03708, section 3; its released code; mixing by w: arXiv 2407.15762"
    node = "alignment through feedback / multi-objective / direct objective-space optimization"
    stage = "modpo_features"

    def margins(self, policy: Policy, rows: Sequence[Branches], aims: Sequence[Aim], known: Sequence[str]) -> Margins:
        there = list(policy.spec.features)
        for dimension in known:
            if dimension not in there:
                raise UserError(
                    f"alignment=modpo_features has no feature of {dimension!r} to take its reward from: there are "
                    f"{', '.join(there)}; set the dimensions of both stages alike"
                )
        others, scale = tensor([aim.others for aim in aims]), self.scale
        columns = [there.index(dimension) for dimension in known]
        weights = [fingerprint(policy, policy.spec.features[dimension]) for dimension in known]
        return [scale, weights], lambda: scale * (others * feature_margins(policy, rows)[:, columns]).sum(-1)
