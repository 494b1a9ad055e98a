"""PARM's plan: its weights, its identities, and the decoder against models of merged weights."""

from __future__ import annotations

import pytest
import torch

from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.generation.parm import PARM
from personalign.generation.plain import Plain
from personalign.plans import Plan, PolicySpec, Sampling
from personalign.policy import lora
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.policy.tiny import random_llama
from personalign.types import Message, Request, Stance, UserState

ASK = Request(id="q", user="ada", messages=(Message("user", "What is tea?"),))
NAMES = ("warmth", "grade")
SPEC = PolicySpec(features={name: ((f"parm-{name}", 1.0),) for name in NAMES})


def state(warmth: float, grade: float) -> UserState:
    return UserState(stance=Stance(NAMES, (warmth, grade)))


def test_the_weights_are_those_of_training_whatever_the_length_of_the_stance() -> None:
    base, guide = PARM(strength=0.5).plan(ASK, state(0.375, -0.125), SPEC).streams
    assert base.weight == 1.0 and base.deltas == () and guide.weight == 0.5 and guide.prompt == base.prompt
    assert dict(guide.deltas) == pytest.approx({"parm-warmth": 0.75, "parm-grade": -0.25})
    assert PARM(strength=0.5).plan(ASK, state(0.75, -0.25), SPEC) == Plan((base, guide))


def test_strength_zero_and_a_neutral_stance_are_the_base() -> None:
    base = Plain().plan(ASK, UserState(), PolicySpec())
    assert PARM(strength=0.0).plan(ASK, state(1.0, -1.0), SPEC).simplified() == base.simplified()
    assert PARM(strength=1.0).plan(ASK, state(0.0, 0.0), SPEC) == base
    assert PARM(strength=1.0).plan(ASK, UserState(), SPEC) == base


@torch.no_grad()
def test_the_decoder_adds_a_model_of_mixed_weights(tiny: Policy) -> None:
    plain, mixed = random_llama(32, 2, 4, 2, 512, 0), random_llama(32, 2, 4, 2, 512, 0)
    for seed, (name, weight) in enumerate(zip(NAMES, (0.6, -0.4), strict=True)):
        tiny.add_adapter(f"parm-{name}", LoRAConfig(4, 8.0, 0.0, ("q_proj", "down_proj")))
        for parameter in lora.parameters(tiny.model, f"parm-{name}"):
            torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(seed))
        for path, layer in lora.layers(tiny.model):
            if f"parm-{name}" in layer.deltas:
                delta = layer.delta(f"parm-{name}")
                mixed.get_submodule(path).weight += weight * delta.scale * delta.B @ delta.A
    plan = PARM(strength=1.5).plan(ASK, state(0.3, -0.2), SPEC)
    (found,) = Decoder(tiny, 4).generate([Job("q", Plan(plan.streams, sampling=Sampling(max_new_tokens=8)))])
    ids, logprobs = tiny.encode(ASK.messages), []
    for token in found.tokens:
        scores = [model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1) for model in (plain, mixed)]
        score = (scores[0] + 1.5 * scores[1]).log_softmax(-1)
        assert int(score.argmax()) == token
        logprobs.append(float(score.max()))
        ids.append(token)
    assert found.logprobs == pytest.approx(logprobs, abs=1e-3) and len(ids) > 1
