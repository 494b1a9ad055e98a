"""A planted conflict of two objectives: what is trained traces a front over the weights that dominates the base."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from personalign.alignment.chebyshev import Chebyshev
from personalign.alignment.modpo import Modpo, ModpoFeatures
from personalign.alignment.pad import Pad
from personalign.alignment.ric import Ric
from personalign.contracts import Generation
from personalign.decoding.scoring import Reading, score_readings
from personalign.evaluation.pareto import hypervolume
from personalign.generation import ric as context
from personalign.generation.plain import Plain
from personalign.generation.soup import Soup
from personalign.policy.policy import Policy
from personalign.types import Message, Messages, Pair, Request, Stance, UserState

Make = Callable[..., Any]
DIMENSIONS = ("warmth", "grade")
WORDS = {"warmth": "aa", "grade": "bb", "neither": "cc"}
PROMPTS = ("Say it.", "Go on!")
# All answers of three words: the more of one kind, the less of the other.
ANSWERS = [" ".join(words) for words in itertools.product(WORDS.values(), repeat=3)]
GRID = (0.0, 0.5, 1.0)


def rating(text: str) -> dict[str, float]:
    return {dimension: float(text.split().count(WORDS[dimension])) for dimension in DIMENSIONS}


def request(number: int, prompt: str) -> Request:
    return Request(id=f"r{number}", user="ada", messages=(Message("user", prompt),), split="train")


@pytest.fixture
def conflict() -> list[Pair]:
    """Random answers to random prompts, with the ratings of both."""
    draw = np.random.default_rng(0)
    pairs = []
    for number in range(60):
        chosen, rejected = (ANSWERS[i] for i in draw.choice(len(ANSWERS), 2, replace=False))
        one, other = rating(chosen), rating(rejected)
        asked = request(number, PROMPTS[number % len(PROMPTS)])
        ratings = {d: (one[d], other[d]) for d in DIMENSIONS}
        labels = {d: one[d] - other[d] for d in DIMENSIONS}
        told = {"labels": labels, "ratings": ratings}
        pairs.append(Pair(id=f"p{number}", request=asked, chosen=chosen, rejected=rejected, **told))
    return pairs


def reached(policy: Policy, part: Generation, weights: Sequence[float]) -> tuple[float, float]:
    """The mean rating on both dimensions of an answer that is drawn as the plan says, among all that there are."""
    state = UserState(stance=Stance(DIMENSIONS, tuple(weights)))
    ratings = np.array([[rating(text)[d] for d in DIMENSIONS] for text in ANSWERS])
    means = []
    for number, prompt in enumerate(PROMPTS):
        plan = part.plan(request(number, prompt), state, policy.spec)
        readings = [Reading("r", plan, tuple(policy.encode_answer(text))) for text in ANSWERS]
        scores = torch.tensor(score_readings(policy, readings, "answers"), dtype=torch.float64)
        means.append(torch.softmax(scores, 0).numpy() @ ratings)
    warmth, grade = np.mean(means, axis=0)
    return float(warmth), float(grade)


def front(policy: Policy, part: Generation) -> list[tuple[float, float]]:
    return [reached(policy, part, (w, 1.0 - w)) for w in GRID]


def volume(points: Sequence[tuple[float, float]]) -> float:
    return hypervolume(np.array(points), 0.0)


@pytest.mark.parametrize("kind", ["soup", "modpo", "modpo_features", "chebyshev"])
def test_weights_trace_a_front_beyond_the_base(
    kind: str,
    policy: Policy,
    conflict: list[Pair],
    pad_values: dict[str, Any],
    modpo_values: dict[str, Any],
    chebyshev_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
) -> None:
    base = front(policy, Plain())
    assert len(set(base)) == 1, "the base knows no weights"
    more: dict[str, Any] = {"steps": 40, "pairs": None, "weight_decay": 0.0}
    if kind in ("soup", "modpo_features"):
        Pad(**{**pad_values, **more}).fit(policy, given(conflict), render, make_fitting(micro_batch=4))
    drawn = {**more, "signed": False, "min_gap": 0.1}
    if kind == "modpo":
        Modpo(**{**modpo_values, **drawn}).fit(policy, given(conflict), render, make_fitting(micro_batch=4))
    if kind == "modpo_features":
        values = {**modpo_values, **drawn, "scale": 0.1}
        ModpoFeatures(**values).fit(policy, given(conflict), render, make_fitting(micro_batch=4))
    if kind == "chebyshev":
        values = {**chebyshev_values, **drawn, "utopia": 3.0, "temperature": 0.1}
        Chebyshev(**values).fit(policy, given(conflict), render, make_fitting(micro_batch=4))
    found = front(policy, Soup(weights="simplex", scale=1.0, form="delta"))
    assert volume(found) > 2 * volume(base), (base[0], found)
    warmth, grade = zip(*found, strict=True)
    assert warmth[-1] > base[0][0] + 0.75 and grade[0] > base[0][1] + 0.75
    assert warmth[0] < warmth[1] < warmth[2] and grade[0] > grade[1] > grade[2]


def test_ratings_in_the_prompt_move_the_answer(
    policy: Policy, conflict: list[Pair], ric_values: dict[str, Any], given: Make, make_fitting: Make
) -> None:
    part = context.Ric(
        dimensions=list(DIMENSIONS),
        mapping="linear",
        low=-1.5,
        high=1.5,
        decimals=1,
        template="{request} {ratings}",
        placement="user",
    )

    def render(asked: Request, targets: Mapping[str, float] | None = None) -> Messages:
        return part.render(asked, UserState(targets=targets))

    base = front(policy, Plain())
    stage = Ric(**{**ric_values, "steps": 80, "batch_size": 8, "learning_rate": 0.02, "rank": 8})
    stage.fit(policy, given(conflict), render, make_fitting(micro_batch=8))
    found = front(policy, part)
    assert volume(found) > 1.2 * volume(base), (base[0], found)
    assert found[-1][0] > found[0][0] + 0.5 and found[0][1] > found[-1][1] + 0.5
