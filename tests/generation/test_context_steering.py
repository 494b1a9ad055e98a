"""Context steering: its zero points, Amulet's closed form against the game itself, and answers against a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference as brute
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.generation.context_steering import Amulet, ContextSteering, amulet_strength
from personalign.plans import Chat, Plan, PolicySpec, Sampling, Stream
from personalign.policy.policy import Policy
from personalign.types import Message, Request, UserState

PROMPT = {"template": "Wish: {profile}", "placement": "user"}
TEXTS = ("Hi", "Tell me about the sea.", "Why is this prompt so much longer than those before it?")
POEMS = UserState(profile="poems")


def steered(strength: float) -> ContextSteering:
    return ContextSteering(strength=strength, **PROMPT)  # type: ignore[arg-type]


def asked(text: str) -> Request:
    return Request(id=text, user="ada", messages=(Message("user", text),))


# --- identities of plans ---------------------------------------------------------------------------


def test_strength_zero_is_the_preference_prompt_and_minus_one_is_plain(make, ask, state, spec):
    for strength, same in ((0.0, "preference_prompt"), (-1.0, "plain")):
        assert make("cos", strength=strength).plan(ask, state, spec) == make(same).plan(ask, state, spec)


@given(st.floats(-3, 6))
def test_weights_sum_to_one_on_two_prompts_of_one_policy(strength: float):
    spec = PolicySpec(aligned=(("dpo", 1.0),))
    streams = steered(strength).plan(asked("Hi"), POEMS, spec).streams
    assert sum(s.weight for s in streams) == pytest.approx(1.0)
    assert {s.deltas for s in streams} == {spec.aligned}
    weights = {s.prompt[0].messages[0].content: s.weight for s in streams}  # type: ignore[union-attr]
    assert weights.get("Wish: poems\n\nHi", 0.0) == 1.0 + strength and weights.get("Hi", 0.0) == -strength


def test_amulet_is_cos_of_its_strength(make, ask, state, spec):
    plan = make("amulet").plan(ask, state, spec)
    assert plan == make("cos", strength=amulet_strength(60, 2.0, 2.0, 10.0)).plan(ask, state, spec)
    assert [s.weight for s in plan.streams] == pytest.approx([5.6487, -4.6487], abs=5e-5)
    assert [s.weight for s in make("linear_alignment").plan(ask, state, spec).streams] == [3.0, -2.0]


# --- Amulet's strength -----------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0, 2), st.floats(0.5, 4), st.floats(0.1, 20))
def test_the_closed_form_is_the_game(seed: int, rounds: int, alpha: float, lambda_: float, eta: float):
    context, plain = np.random.default_rng(seed).normal(size=(2, 50))
    strength = amulet_strength(rounds, min(alpha, lambda_), lambda_, eta)
    closed = brute.log_softmax((1 + strength) * brute.log_softmax(context) - strength * brute.log_softmax(plain))
    played = brute.amulet(context, plain, rounds, min(alpha, lambda_), lambda_, eta)
    assert np.abs(closed - played).max() < 1e-12 * max(1.0, np.abs(played).max())


@pytest.mark.parametrize(
    ("rounds", "alpha", "lambda_", "strength"),
    [
        (60, 2.0, 2.0, 4.6487),
        (20, 2.0, 2.0, 3.5665),
        (10, 2.0, 2.0, 2.8976),
        (1, 2.0, 2.0, 0.9524),
        (60, 1.0, 2.0, 0.9260),
        (60, 2.0, 3.0, 1.6205),
    ],
)
def test_known_strengths(rounds, alpha, lambda_, strength):
    assert amulet_strength(rounds, alpha, lambda_, 10.0) == pytest.approx(strength, abs=5e-5)


def test_there_is_a_limit_below_lambda_and_none_from_it_on():
    assert amulet_strength(200_000, 1.0, 2.0, 10.0) == pytest.approx(1.0, abs=2e-3)
    growing = [amulet_strength(rounds, 2.0, 2.0, 10.0) for rounds in (10, 100, 1000, 10_000)]
    assert np.diff(growing).min() > 2.0


def test_a_strength_beyond_numbers_is_refused():
    values = {"iterations": 2000, "alpha": 1000.0, "lambda_": 0.0, "eta": 10.0}
    with pytest.raises(UserError, match="infinite after 2000 iterations with alpha=1000 and lambda_=0"):
        Amulet(**values, **PROMPT)  # type: ignore[arg-type]


# --- answers ---------------------------------------------------------------------------------------


def loop(policy: Policy, text: str, strength: float, tokens: int) -> tuple[int, ...]:
    """Two uncached forwards for every token, and the formula on their log-softmaxes."""
    prompts = [policy.encode((Message("user", said),)) for said in (f"Wish: poems\n\n{text}", text)]
    made: list[int] = []
    while len(made) < tokens and not (made and made[-1] in policy.stop_ids):
        with torch.no_grad():
            context, plain = (policy.model(torch.tensor([p + made])).logits[0, -1].log_softmax(-1) for p in prompts)
        made.append(int(((1 + strength) * context - strength * plain).argmax()))
    return tuple(made)


def answers(policy: Policy, plans: list[Plan], **sampling: float) -> list[tuple[int, ...]]:
    how = Sampling(max_new_tokens=12, **sampling)  # type: ignore[arg-type]
    jobs = [Job(str(i), Plan(plan.streams, plan.candidates, how)) for i, plan in enumerate(plans)]
    made = {r.request: r.tokens for r in Decoder(policy, 8).generate(jobs)}
    return [made[job.request] for job in jobs]


@pytest.mark.parametrize("strength", [-1.5, -1.0, 0.0, 0.7, amulet_strength(60, 2.0, 2.0, 10.0)])
def test_answers_equal_an_uncached_loop(tiny: Policy, strength: float):
    plans = [steered(strength).plan(asked(text), POEMS, PolicySpec()) for text in TEXTS]
    assert answers(tiny, plans) == [loop(tiny, text, strength, 12) for text in TEXTS]


def test_at_minus_one_and_zero_the_sampled_answers_are_those_of_the_one_prompt(tiny: Policy):
    for strength, said in ((-1.0, "{}"), (0.0, "Wish: poems\n\n{}")):
        plans = [steered(strength).plan(asked(text), POEMS, PolicySpec()) for text in TEXTS]
        alone = [Plan((Stream((Chat((Message("user", said.format(text)),)),)),)) for text in TEXTS]
        warped = {"temperature": 0.6, "top_p": 0.9}
        assert answers(tiny, plans, **warped) == answers(tiny, alone, **warped)


def test_a_top_p_cut_of_the_sampling_leaves_every_score_a_number(tiny: Policy):
    plan = steered(2.0).plan(asked("Hi"), POEMS, PolicySpec())
    job = Job("r", Plan(plan.streams, plan.candidates, Sampling(temperature=0.6, top_p=0.3, max_new_tokens=12)))
    assert all(math.isfinite(logprob) for logprob in Decoder(tiny, 1).generate([job])[0].logprobs)
