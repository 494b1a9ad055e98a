"""What a stage learns a dimension from: pairs in which the answers differ in it, whoever chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personalign.alignment.batches import Limits, encode
from personalign.alignment.labels import occurring
from personalign.alignment.training import nonempty
from personalign.contracts import Data, Render, UserError
from personalign.policy.logprobs import Branches
from personalign.policy.policy import Policy
from personalign.types import Messages, Pair


@dataclass(frozen=True, slots=True)
class Contrasts:
    """Pairs for each of some dimensions (null: all that occur) that differ by `min_gap` or more in it, `pairs` at most.

    `stage` is the choice of alignment, for messages.
    """

    stage: str
    dimensions: Sequence[str] | None
    min_gap: float
    pairs: int | None
    limits: Limits

    def rows(self, policy: Policy, data: Data, render: Render, title: str) -> dict[str, list[Branches]]:
        """By dimension, the answer that has more of it first. Raises UserError where there is nothing to learn from;
        `title` names what is trained."""
        found = nonempty(data.pairs("train"), title)
        prompts = [render(pair.request) for pair in found]
        dimensions = occurring((d for pair in found for d in pair.labels), self.dimensions, self.stage)
        chosen = {d: contrasting(found, prompts, d, self.min_gap, self.pairs, self.stage) for d in dimensions}
        return {d: encode(policy, some, render, self.limits) for d, some in chosen.items()}


def contrasting(
    pairs: Sequence[Pair], prompts: Sequence[Messages], dimension: str, min_gap: float, limit: int | None, stage: str
) -> list[Pair]:
    """Pairs relabelled by the sign of one dimension: the most contrasting first, each two answers to a prompt once."""
    gaps = [(pair.labels.get(dimension, 0.0), pair, prompt) for pair, prompt in zip(pairs, prompts, strict=True)]
    unique: dict[object, Pair] = {}
    for gap, pair, prompt in sorted(gaps, key=lambda found: -abs(found[0])):
        if gap != 0.0 and abs(gap) >= min_gap:
            unique.setdefault((prompt, frozenset((pair.chosen, pair.rejected))), turned(pair, gap))
    if not unique:
        raise UserError(
            f"no pair of answers differs by {min_gap} or more in {dimension!r}: lower alignment.{stage}.min_gap, or "
            f"leave that dimension out of alignment.{stage}.dimensions"
        )
    return list(unique.values())[:limit]


def turned(pair: Pair, gap: float) -> Pair:
    """The pair with the answer that has more of the dimension as the chosen one."""
    return pair if gap > 0 else pair.swapped()
