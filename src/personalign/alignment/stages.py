"""What most stages are told alike, and what is made of it: a stage's own `__init__` names what is its own."""

from __future__ import annotations

from typing import Literal, TypedDict, Unpack

from personalign.alignment.batches import Limits
from personalign.alignment.recipe import Recipe
from personalign.alignment.trainees import Adapters
from personalign.contracts import (
    Fraction,
    FractionBelowOne,
    Names,
    NonNegativeFloat,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Stage,
)
from personalign.policy.lora import LoRAConfig


class RecipeKeys(TypedDict):
    """See `Recipe`."""

    learning_rate: PositiveFloat
    warmup: Fraction
    schedule: Literal["constant", "linear", "cosine"]
    steps: PositiveInt
    batch_size: PositiveInt
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat | None
    checkpoint_every: PositiveInt


class TrainedKeys(RecipeKeys):
    """See `Trained`."""

    max_prompt: PositiveInt
    max_answer: PositiveInt


class AdaptedKeys(TrainedKeys):
    """See `Adapted`."""

    adapter: str
    pairs: PositiveInt | None
    rank: PositiveInt
    alpha: PositiveFloat
    dropout: FractionBelowOne
    targets: Names
    depth: PositiveFraction


class Trained(Stage):
    """A stage that learns by a recipe, from prompts and answers of at most so many tokens."""

    def __init__(self, *, max_prompt: PositiveInt, max_answer: PositiveInt, **recipe: Unpack[RecipeKeys]) -> None:
        self.limits, self.recipe = Limits(max_prompt, max_answer), Recipe(**recipe)


class Adapted(Trained):
    """One that learns a LoRA adapter from at most `pairs` pairs; or several, alike but for their names."""

    def __init__(
        self,
        *,
        adapter: str,
        pairs: PositiveInt | None,
        rank: PositiveInt,
        alpha: PositiveFloat,
        dropout: FractionBelowOne,
        targets: Names,
        depth: PositiveFraction,
        **trained: Unpack[TrainedKeys],
    ) -> None:
        super().__init__(**trained)
        self.adapter, self.pairs = adapter, pairs
        self.adapters = Adapters((adapter,), LoRAConfig(rank, alpha, dropout, tuple(targets)), depth)
