"""A further model as guide of DExperts, GenARM and Drift: with every token a candidate it is the one model's answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import vocabularies

from personalign.contracts import Generation
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.generation.dexperts import DExperts
from personalign.generation.drift import Drift
from personalign.generation.genarm import GenARM
from personalign.generation.plain import Plain
from personalign.plans import Deltas, PolicySpec, Sampling
from personalign.policy.lora import LoRAConfig, parameters
from personalign.policy.policy import Policy
from personalign.types import Message, Request, Stance, UserState

TEXTS = ("What is tea?", "Why?", "A longer question, so that the rows are padded.")
PROMPTS = {"warmth": "You are warm!", "length": "You say much."}
KNOWN = UserState(stance=Stance(("warmth", "length"), (0.8, -0.4)))
LEARNED: Deltas = (("one", 1.0),)
SPECS = {
    "dexperts": PolicySpec(aligned=LEARNED),
    "genarm": PolicySpec(features={"warmth": LEARNED, "length": (("two", 1.0),)}),
    "drift": PolicySpec(),
}


def generation(name: str, top_k: int | None) -> Generation:
    if name == "dexperts":
        return DExperts(strength=2.0, expert=None, anti_expert=None, top_k=top_k)
    if name == "genarm":
        return GenARM(strength=1.5, top_k=top_k)
    return Drift(beta=0.4, attributes=PROMPTS, top_k=top_k)


def adapted(policy: Policy) -> Policy:
    generator = torch.Generator().manual_seed(3)
    for name in ("one", "two"):
        policy.add_adapter(name, LoRAConfig(4, 8, 0.0, ("q_proj", "v_proj", "down_proj")))
        for p in parameters(policy.model, name):
            torch.nn.init.normal_(p, std=0.15, generator=generator)
    return policy


def tokens(policy: Policy, part: Generation, spec: PolicySpec) -> list[tuple[int, ...]]:
    jobs = []
    for i, text in enumerate(TEXTS):
        request = Request(id=f"r{i}", user="ada", messages=(Message("user", text),))
        jobs.append(Job(request.id, replace(part.plan(request, KNOWN, spec), sampling=Sampling(max_new_tokens=14))))
    return [one.tokens for one in Decoder(policy, 4).generate(jobs)]


@pytest.mark.parametrize("ids", ["same", "permuted"])
@pytest.mark.parametrize("name", SPECS)
def test_the_same_model_as_guide_on_the_whole_vocabulary_changes_nothing(tiny: Policy, name: str, ids: str) -> None:
    """The guide alone has learned, and its tokens have other ids."""
    if ids == "same":
        guide = Policy(vocabularies.copied(tiny), tiny.tokenizer, "twin")
    else:
        guide = vocabularies.permuted(tiny, seed=1)
    base = Policy(vocabularies.copied(tiny), tiny.tokenizer, "base")
    base.add_guest("guide", adapted(guide))
    spec, whole = SPECS[name], tiny.embedding.num_embeddings
    alone = tokens(adapted(tiny), generation(name, None), spec)
    assert tokens(base, generation(name, whole), replace(spec, model="guide")) == alone
    assert alone != tokens(tiny, Plain(), PolicySpec()), "the guide moves the base"
