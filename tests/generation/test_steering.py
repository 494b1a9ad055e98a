"""Steering's plan, and that users of other stances in one batch are answered as each would be alone."""

from __future__ import annotations

import pytest
import torch

from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.generation.plain import Plain
from personalign.generation.steering import Steering
from personalign.plans import Plan, PolicySpec, Sampling
from personalign.policy.policy import Policy
from personalign.types import Message, Request, Stance, UserState

NAMES = ("warmth", "grade")
VECTORS = {name: ((f"v-{name}", 1.0),) for name in NAMES}
SPEC = PolicySpec(aligned=(("dpo", 1.0),), vectors=VECTORS)


def ask(text: str) -> Request:
    return Request(id=text, user="ada", messages=(Message("user", text),))


def state(warmth: float, grade: float) -> UserState:
    return UserState(stance=Stance(NAMES, (warmth, grade)))


def test_the_stance_weighs_the_vectors_on_top_of_what_was_trained() -> None:
    (stream,) = Steering(strength=2.0).plan(ask("Tea?"), state(0.5, -1.0), SPEC).streams
    assert stream.weight == 1.0 and stream.deltas == (("dpo", 1.0), ("v-warmth", 1.0), ("v-grade", -2.0))


def test_strength_zero_or_no_stance_is_the_policy_as_it_is() -> None:
    plain = Plain().plan(ask("Tea?"), UserState(), SPEC)
    assert Steering(strength=0.0).plan(ask("Tea?"), state(1.0, -1.0), SPEC) == plain
    assert Steering(strength=1.0).plan(ask("Tea?"), UserState(), SPEC) == plain


def test_a_dimension_without_a_vector_is_named() -> None:
    with pytest.raises(UserError, match="'grade', but no steering vector was trained for it: there are warmth"):
        Steering(strength=1.0).plan(ask("Tea?"), state(1.0, 1.0), PolicySpec(vectors={"warmth": VECTORS["warmth"]}))


def test_users_in_one_batch_are_answered_as_each_alone(tiny: Policy) -> None:
    for seed, name in enumerate(NAMES):
        vector = tiny.add_vector(f"v-{name}", seed).vector
        with torch.no_grad():
            vector.copy_(torch.randn(32, generator=torch.Generator().manual_seed(seed)))
    stances = [(1.0, 0.0), (0.0, 0.0), (-0.5, 0.8), (0.7, 0.7), (-1.0, 0.0)]
    spec, part = PolicySpec(vectors=VECTORS), Steering(strength=1.5)
    jobs = []
    for i, (text, stance) in enumerate((t, s) for t in ("Tea?", "Why is the sky blue?") for s in stances):
        plan = part.plan(ask(text), state(*stance), spec)
        jobs.append(Job(str(i), Plan(plan.streams, sampling=Sampling(max_new_tokens=10))))
    together = {r.request: r for r in Decoder(tiny, 16).generate(jobs)}
    for job in jobs:
        (alone,) = Decoder(tiny, 1).generate([job])
        found = together[job.request]
        assert found.tokens == alone.tokens and found.logprobs == pytest.approx(alone.logprobs, abs=1e-3)
    assert len({together[str(i)].tokens for i in range(5)}) >= 4
