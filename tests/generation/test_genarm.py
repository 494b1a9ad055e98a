"""GenARM's plans: identities, and the decoder against a loop over whole forward passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.generation.genarm import GenARM
from personalign.generation.pad import Pad
from personalign.generation.plain import Plain
from personalign.plans import Candidates, Plan, PolicySpec, Sampling
from personalign.policy import lora
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.types import Message, Request, Stance, UserState

ASK = Request(id="q", user="ada", messages=(Message("user", "What is tea?"),))
NAMES = ("warmth", "grade")
SPEC = PolicySpec(aligned=(("dpo", 1.0),), features={name: ((f"arm-{name}", 1.0),) for name in NAMES})
WEIGHTS = st.lists(st.floats(-1, 1), min_size=2, max_size=2)


def state(*weights: float) -> UserState:
    return UserState(stance=Stance(NAMES[: len(weights)], tuple(weights)))


def genarm(strength: float = 1.0, top_k: int | None = None) -> GenARM:
    return GenARM(strength=strength, top_k=top_k)


def test_strength_zero_no_stance_and_a_neutral_one_are_the_base() -> None:
    base = Plain().plan(ASK, UserState(), PolicySpec())
    assert genarm(0.0).plan(ASK, state(1.0, -1.0), SPEC).simplified() == base.simplified()
    assert genarm(2.0).plan(ASK, UserState(), SPEC) == base
    assert genarm(2.0).plan(ASK, state(0.0, 0.0), SPEC) == base


@given(WEIGHTS, st.floats(0, 3), st.integers(1, 20))
def test_on_candidates_it_is_pad_without_a_reference(weights: list[float], strength: float, k: int) -> None:
    values: dict[str, Any] = {"template": "{profile}", "placement": "system", "base_sees_preference": False}
    pad = Pad(beta=strength, reference="none", top_k=k, score_every=1, **values)
    plan = genarm(strength, k).plan(ASK, state(*weights), SPEC)
    assert plan == pad.plan(ASK, state(*weights), SPEC)
    whole = genarm(strength).plan(ASK, state(*weights), SPEC)
    assert whole.streams == plan.streams and whole.candidates == Candidates()


def test_a_dimension_without_a_model_is_named() -> None:
    with pytest.raises(UserError, match="stance on 'grade', but no feature was trained"):
        genarm().plan(ASK, state(1.0, 1.0), PolicySpec(features={"warmth": ()}))


@pytest.fixture
def guided(tiny: Policy) -> Policy:
    """Two strong random adapters in the upper layer."""
    for seed, name in enumerate(NAMES):
        tiny.add_adapter(f"arm-{name}", LoRAConfig(4, 8.0, 0.0, ("q_proj", "down_proj"), (1,)))
        for parameter in lora.parameters(tiny.model, f"arm-{name}"):
            torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(seed))
    return tiny


@torch.no_grad()
def looped(policy: Policy, weights: dict[str, float], k: int | None) -> tuple[list[int], list[float]]:
    """argmax of log p_base + sum_k alpha_k log pi_k, a whole forward pass for each model and token."""
    ids, logprobs = policy.encode(ASK.messages), []
    start = len(ids)
    for _ in range(8):

        def told(deltas: Any) -> torch.Tensor:
            with policy.using(deltas):
                return policy.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)

        base = told(())
        score = base + sum(w * told(((f"arm-{name}", 1.0),)) for name, w in weights.items())
        if k is not None:
            kept = base.topk(k).indices
            score = torch.full_like(score, float("-inf")).index_copy(0, kept, score[kept])
        ids.append(int(score.argmax()))
        logprobs.append(float(score.log_softmax(-1).max()))
        if ids[-1] in policy.stop_ids:
            break
    return ids[start:], logprobs


@pytest.mark.parametrize("k", [None, 7])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.4, 0.8), (0.7, -0.6)])
def test_the_decoder_adds_up_what_the_models_say(guided: Policy, weights: tuple[float, float], k: int | None) -> None:
    plan = genarm(1.5, k).plan(ASK, state(*weights), SPEC)
    (found,) = Decoder(guided, 4).generate([Job("q", Plan(plan.streams, plan.candidates, Sampling(max_new_tokens=8)))])
    tokens, logprobs = looped(guided, {n: 1.5 * w for n, w in zip(NAMES, weights, strict=True)}, k)
    assert found.tokens == tuple(tokens) and found.logprobs == pytest.approx(logprobs, abs=1e-3)
