"""One policy for every weighing of objectives: adapters mixed by the weights, learned under weights that are drawn.

The policy of weights w is theta(w) = base + sum_k w_k theta_k, as in CLP (arXiv 2407.15762, mixing of LoRA parameters).
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Unpack

from torch import Tensor, tensor

from personalign.alignment.batches import Item, encode
from personalign.alignment.labels import occurring, once
from personalign.alignment.losses import modpo_loss
from personalign.alignment.pad import adapter_names
from personalign.alignment.preference import Preference, items, references
from personalign.alignment.stages import Adapted, AdaptedKeys
from personalign.alignment.training import Lesson, nonempty, share, train
from personalign.contracts import Data, NonNegativeFloat, PositiveFloat, PositiveInt, Render, UserError
from personalign.plans import Deltas
from personalign.policy.logprobs import Branches
from personalign.policy.policy import Policy
from personalign.policy.reference import fingerprint
from personalign.runtime.seeds import derive
from personalign.types import Pair

if TYPE_CHECKING:
    from personalign.runtime.fitting import Fitting

Weights = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Draws:
    """`count` weight vectors of |w|_1 = 1 for a pair: magnitudes from a symmetric Dirichlet distribution, of which
    each has a sign of its own where they are `signed`."""

    count: int
    concentration: float
    signed: bool

    def of(self, size: int, seed: int) -> list[Weights]:
        stream = random.Random(seed)
        return [self._one(size, stream) for _ in range(self.count)]

    def _one(self, size: int, stream: random.Random) -> Weights:
        parts = [stream.gammavariate(self.concentration, 1.0) + 1e-12 for _ in range(size)]
        signs = [stream.choice((-1.0, 1.0)) if self.signed else 1.0 for _ in range(size)]
        return tuple(sign * part / sum(parts) for sign, part in zip(signs, parts, strict=True))


@dataclass(frozen=True, slots=True)
class Aim:
    """A pair whose chosen answer is the better one under `weights`, and what its loss is made of: `own` and the
    weights of the margin, `others` (see `losses.modpo_loss`; in `parm`, the weight for and those against it)."""

    pair: Pair
    weights: Weights
    own: float
    others: Weights


# What margins depend on, as plain data, and how they are computed: [rows], in nats.
Margins = tuple[object, Callable[[], Tensor]]


class ConditionedKeys(AdaptedKeys):
    """See `Conditioned`."""

    dimensions: list[str] | None
    signed: bool
    concentration: PositiveFloat
    draws: PositiveInt
    min_gap: NonNegativeFloat
    beta: PositiveFloat


class Conditioned(Adapted):
    """theta(w), trained on pairs under weights that are drawn for each; in use the weights are the user's stance.

    It leaves one feature a dimension, theta_k, of which generation=soup makes theta(w). The reference is the base
    unless `reference` says otherwise.
    """

    stage: ClassVar[str]

    @property
    def objective(self) -> type[Mixtures]:
        """The objective, a loss of rows that each go through a mixture of their own."""
        return Mixtures

    def __init__(
        self,
        *,
        dimensions: list[str] | None,
        signed: bool,
        concentration: PositiveFloat,
        draws: PositiveInt,
        min_gap: NonNegativeFloat,
        beta: PositiveFloat,
        **adapted: Unpack[AdaptedKeys],
    ) -> None:
        super().__init__(**adapted)
        self.dimensions, self.draws = dimensions, Draws(draws, concentration, signed)
        self.min_gap, self.beta = min_gap, beta

    @abstractmethod
    def told(self, pair: Pair) -> Mapping[str, object]:
        """What the pair tells, by dimension."""

    @abstractmethod
    def aim(self, pair: Pair, dimensions: Sequence[str], weights: Weights) -> Aim | None:
        """What a pair teaches under weights; None where it teaches nothing."""

    @abstractmethod
    def margins(self, policy: Policy, rows: Sequence[Branches], aims: Sequence[Aim], known: Sequence[str]) -> Margins:
        """sum_{j != k} w_j (r_j(chosen) - r_j(rejected)) of every row; `known` are the dimensions."""

    def reference(self, policy: Policy, rows: Sequence[Branches]) -> Tensor:
        """Log-probabilities [rows, 2] that the policy's own are measured against."""
        return references(policy, {self.adapter: rows}, ())[self.adapter]

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        found = nonempty(data.pairs("train"), self.adapter)
        dimensions = occurring((d for pair in found for d in self.told(pair)), self.dimensions, self.stage)
        names = adapter_names(self.adapter, dimensions)
        aims = self._aims(once(found, [render(pair.request) for pair in found]), dimensions, fitting.seed)
        rows = encode(policy, [aim.pair for aim in aims], render, self.limits)
        mixtures = [tuple(zip(names, aim.weights, strict=True)) for aim in aims]
        source, margins = self.margins(policy, rows, aims, dimensions)

        def prepare() -> tuple[Mixtures, dict[str, list[Item]]]:
            reference, own = self.reference(policy, rows), tensor([aim.own for aim in aims])
            objective = self.objective(policy, self.adapter, rows, reference, mixtures, own, margins(), self.beta)
            return objective, items({self.adapter: rows})

        adapters = replace(self.adapters, names=tuple(names))
        terms = [[aim.weights, aim.own, aim.others] for aim in aims]
        content = [self.stage, fingerprint(policy, ()), adapters, self.beta, rows, terms, source]
        lesson = Lesson(title=self.adapter, trainee=adapters, content=content, recipe=self.recipe, prepare=prepare)
        figures = train(policy, fitting, lesson)
        features = {d: ((name, 1.0),) for d, name in zip(dimensions, names, strict=True)}
        policy.spec = replace(policy.spec, features={**policy.spec.features, **features})
        return figures

    def _aims(self, pairs: Sequence[Pair], dimensions: Sequence[str], seed: int) -> list[Aim]:
        drawn = [
            self.aim(pair, dimensions, weights)
            for pair in share(pairs, self.pairs)
            for weights in self.draws.of(len(dimensions), derive(seed, "weights", pair.id))
        ]
        aims = [aim for aim in drawn if aim is not None]
        if not aims:
            raise UserError(
                f"no pair of answers differs enough in {', '.join(dimensions)}: lower alignment.{self.stage}.min_gap, "
                f"or choose other alignment.{self.stage}.dimensions"
            )
        return aims


class Mixtures(Preference):
    """`losses.modpo_loss` of rows [n] that each go through a mixture of the adapters of their own; `own` and `others`
    are [n]."""

    def __init__(
        self,
        policy: Policy,
        group: str,
        rows: Sequence[Branches],
        reference: Tensor,
        mixtures: Sequence[Deltas],
        own: Tensor,
        others: Tensor,
        beta: float,
    ) -> None:
        super().__init__(policy, {group: rows}, {group: reference}, {}, beta)
        self.mixtures, self.own, self.others = mixtures, own, others

    def _route(self, group: str, row: int) -> Deltas:
        return self.mixtures[row]

    def _loss(self, group: str, some: list[int], m: Tensor) -> Tensor:
        return modpo_loss(m, self.others[some].to(m.device), self.own[some].to(m.device), self.beta)
