"""The features and steering vectors of a policy, weighed by a user's stance: what PAD, soups and MOD are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from personalign.contracts import UserError
from personalign.plans import Deltas, PolicySpec, Rater
from personalign.types import UserState


def weighed(state: UserState, spec: PolicySpec) -> list[tuple[float, Deltas]]:
    """(w_k, the deltas of feature k) of every dimension that the stance weighs; none without a stance.

    Raises UserError where a stance weighs a dimension that no feature was trained for.
    """
    return _weighed(state, spec.features, "feature")


def steering(state: UserState, spec: PolicySpec) -> list[tuple[float, Deltas]]:
    """The same of the steering vectors."""
    return _weighed(state, spec.vectors, "steering vector")


def _weighed(state: UserState, known: Mapping[str, Deltas], kind: str) -> list[tuple[float, Deltas]]:
    weights = {d: w for d, w in (state.stance.as_dict() if state.stance else {}).items() if w != 0.0}
    for dimension in weights:
        if dimension not in known:
            raise UserError(
                f"the user has a stance on {dimension!r}, but no {kind} was trained for it: "
                f"there are {listed(known)}; train one, or leave the dimension out of the stance"
            )
    return [(w, known[dimension]) for dimension, w in weights.items()]


def mixed(weights: Sequence[float], parts: Sequence[Deltas]) -> Deltas:
    """sum_k w_k theta_k as deltas: the coefficients of every feature times its weight, weights of zero left out."""
    found = [(w, deltas) for w, deltas in zip(weights, parts, strict=True) if w]
    return tuple((name, w * coefficient) for w, deltas in found for name, coefficient in deltas)


def shares(state: UserState, spec: PolicySpec, weights: Literal["simplex", "signed"]) -> list[tuple[float, Deltas]]:
    """`weighed`, with `simplex` as `simplex` has it: of the dimensions that the user wants more of."""
    parts = weighed(state, spec)
    if weights == "signed":
        return parts
    found = simplex([w for w, _ in parts])
    return [(w, deltas) for w, (_, deltas) in zip(found, parts, strict=True) if w]


def simplex(weights: Sequence[float]) -> list[float]:
    """The positive weights, divided by their sum; all 0 where none is positive."""
    positive = [max(w, 0.0) for w in weights]
    total = sum(positive)
    return [w / total for w in positive] if total else positive


def rater(spec: PolicySpec, head: str) -> Rater:
    """How a head of the policy rates. Raises UserError where it has no such head."""
    if head not in spec.raters:
        raise UserError(f"the policy has no head {head!r} that rates answers: it has {listed(spec.raters)}")
    return spec.raters[head]


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
