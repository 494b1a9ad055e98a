"""What the stages share: train what is new under an objective, or load it where that was done before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

from personalign.alignment.batches import MicroBatches
from personalign.alignment.learner import Learner, Objective, Recipe
from personalign.alignment.trainees import Adapters, Head
from personalign.contracts import UserError
from personalign.policy.policy import Policy
from personalign.runtime.files import content_hash
from personalign.runtime.fitting import Fitting, Shard, Training
from personalign.types import Pair

Lengths = Mapping[str, Sequence[int]]
T = TypeVar("T")


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` items, evenly spaced, so that every user has a part in them."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def nonempty(pairs: Sequence[Pair], title: str) -> Sequence[Pair]:
    """The pairs. Raises UserError where there are none."""
    if not pairs:
        raise UserError(f"stage {title!r} has no pair to train on: the data have none in their train split")
    return pairs


def train(
    policy: Policy,
    fitting: Fitting,
    trainee: Adapters | Head,
    *,
    title: str,
    content: object,
    recipe: Recipe,
    prepare: Callable[[], tuple[Objective, Lengths]],
    light: bool = False,
) -> dict[str, float]:
    """Train `trainee`, or load what an earlier run with the same content trained; return the figures.

    `content` is plain data that, with the recipe and the seed, determines the result: its hash names the stage's
    folder, so that a stale result is never taken for a new one and runs may share a folder. `prepare` computes what
    the objective needs, only where there is something to train, and says how long the rows of each group are.
    """
    key = content_hash([content, asdict(recipe), fitting.seed])
    name = f"{title}-{key[:16]}"
    with fitting.claim(name):
        known = fitting.figures(name)
        if known is not None:
            trainee.load(policy, fitting.place(name))
            return known
        return _trained(policy, fitting, trainee, name, title, recipe, prepare, light)


XX    learner = Learner(title, policy, trainee.create(policy, fitting.seed), objective, recipe)

    def loader(shard: Shard) -> MicroBatches:
        size, steps = recipe.batch_size, recipe.steps
        return MicroBatches(lengths, shard, batch_size=size, steps=steps, seed=fitting.seed)

    training = Training(
        name=name,
        title=title,
        module=learner,
        loader=loader,
        save=lambda folder: trainee.save(policy, folder),
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        max_grad_norm=recipe.max_grad_norm,
        checkpoint_every=recipe.checkpoint_every,
        light=light,
    )
    try:
        figures = fitting.run(training)
    except BaseException:
        trainee.discard(policy)
        raise
    trainee.freeze(policy)
    return figures
