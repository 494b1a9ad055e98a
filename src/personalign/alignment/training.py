"""What the stages share: train what is new under an objective, or load it where that was done before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from personalign.alignment.batches import Item, MicroBatches
from personalign.alignment.learner import Learner, Objective, Practice
from personalign.alignment.recipe import Recipe
from personalign.alignment.trainees import Trainee
from personalign.contracts import UserError
from personalign.policy.policy import Policy
from personalign.runtime.files import content_hash
from personalign.runtime.fitting import Fitting, Shard, Training
from personalign.types import Pair

Items = Mapping[str, Sequence[Item]]


def share(pairs: Sequence[Pair], limit: int | None) -> list[Pair]:
    """At most `limit` pairs: every user's first, then every user's second, and so on; in the order they come in."""
    count: dict[str, int] = {}
    turns = []
    for place, pair in enumerate(pairs):
        turns.append((count.setdefault(pair.request.user, 0), place))
        count[pair.request.user] += 1
    return [pairs[place] for place in sorted(place for _, place in sorted(turns)[:limit])]


def nonempty(pairs: Sequence[Pair], title: str) -> Sequence[Pair]:
    """The pairs. Raises UserError where there are none."""
    if not pairs:
        raise UserError(f"stage {title!r} has no pair to train on: the data have none in their train split")
    return pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What is trained, on what, how; `title` names it for people and for its folder.

    `content` is plain data that, with recipe and seed, determines the result. `prepare` computes what the objective
    needs, only where there is something to train, and says what the rows of each group are. `practice` comes before
    every step. `light`: see `Training`.
    """

    title: str
    trainee: Trainee
    content: object
    recipe: Recipe
    prepare: Callable[[], tuple[Objective, Items]]
    practice: Practice | None = None
    light: bool = False


def train(policy: Policy, fitting: Fitting, lesson: Lesson) -> dict[str, float]:
    """Train, or load what an earlier run with the same content trained; return the figures.

    The hash of the content names the folder, so that a stale result is never taken for a new one and runs may share
    what they learn.
    """
    lesson.trainee.check(policy)
    key = content_hash([lesson.content, asdict(lesson.recipe), fitting.seed])
    name = f"{lesson.title}-{key[:16]}"
    with fitting.claim(name):
        known = fitting.figures(name)
        if known is not None:
            lesson.trainee.load(policy, fitting.place(name))
            return known
        try:
            figures = fitting.run(_training(policy, fitting.seed, lesson, name))
        except BaseException:
            lesson.trainee.discard(policy)
            raise
        lesson.trainee.freeze(policy)
        return figures


def _training(policy: Policy, seed: int, lesson: Lesson, name: str) -> Training:
    recipe = lesson.recipe
    objective, items = lesson.prepare()
    learner = Learner(lesson.title, policy, lesson.trainee.create(policy, seed), objective, recipe, lesson.practice)

    def loader(shard: Shard) -> MicroBatches:
        return MicroBatches(
            items, shard, batch_size=recipe.batch_size, steps=recipe.steps, seed=seed, begin=learner.begin
        )

    return Training(
        name=name,
        title=lesson.title,
        module=learner,
        loader=loader,
        save=lambda folder: lesson.trainee.save(policy, folder),
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        max_grad_norm=recipe.max_grad_norm,
        checkpoint_every=recipe.checkpoint_every,
        light=lesson.light,
    )
