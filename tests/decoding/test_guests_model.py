"""Guides with other tokens on the embedded model: permuted they are exact; with fewer merges they mostly agree."""

from __future__ import annotations

import time

import pytest
import torch
import vocabularies

from personalign.decoding.decoder import Decoder
from personalign.decoding.guests import Company
from personalign.decoding.rows import Answer, Job, guests_of
from personalign.plans import Candidates, Chat, Plan, Sampling, Stream
from personalign.policy.policy import Policy
from personalign.types import Message

pytestmark = [pytest.mark.slow, pytest.mark.model]

ASKED = [
    "What is tea?",
    "Why is the sea salty?",
    "Write two lines about autumn in Québec.",
    "How do I learn to juggle?",
    "Tell me a joke about a physicist.",
    "What should I cook tonight?",
    "Explain photosynthesis to a child.",
    "Name three cities in Japan.",
    "How can I sleep better?",
    "What is a good gift for a gardener?",
]
TOKENS = 22
TOP = 10
CONTEXTS = 200


def chat(text: str) -> tuple[Chat]:
    return (Chat((Message("user", text),)),)


def test_the_embedded_model_under_other_ids_is_the_same_guide(smollm2: Policy) -> None:
    smollm2.add_guest("guide", vocabularies.permuted(smollm2, seed=1))
    try:
        made = {}
        for model in (None, "guide"):
            streams = [
                (Stream(chat(text)), Stream(chat(f"{text} Answer in rhyme."), 0.8, model=model)) for text in ASKED[:4]
            ]
            sampling = Sampling(max_new_tokens=24)
            jobs = [Job(f"r{i}", Plan(two, Candidates("top_k", k=TOP), sampling)) for i, two in enumerate(streams)]
            made[model] = Decoder(smollm2, 4).generate(jobs)
    finally:
        smollm2.guests.clear()
    assert [r.tokens for r in made["guide"]] == [r.tokens for r in made[None]]
    for one, other in zip(made[None], made["guide"], strict=True):
        assert other.logprobs == pytest.approx(one.logprobs, abs=2e-3)


@torch.inference_mode()
def agreement(policy: Policy, guide: Policy) -> tuple[float, float, float, int]:
    """The shares of contexts in which a guide that lacks merges has the likeliest token of the model itself as its own
    likeliest candidate: by its covers, and by the first sub-token, as PAD's released code has it; the
    seconds that the covers took in a context; and how many contexts."""
    policy.add_guest("guide", guide)
    jobs = [
        Job(f"r{i}", Plan((Stream(chat(t)),), sampling=Sampling(max_new_tokens=TOKENS))) for i, t in enumerate(ASKED)
    ]
    written = [r.tokens for r in Decoder(policy, 10).generate(jobs)]
    plans = [Plan((Stream(chat(t)), Stream(chat(t), model="guide")), Candidates("top_k", k=TOP)) for t in ASKED]
    answers = [Answer(Job(f"r{i}", plan), []) for i, plan in enumerate(plans)]
    company = Company(*policy.guests["guide"], [row for answer in answers for row in guests_of(policy, answer)])
    covers = policy.guests["guide"].covering
    ours = theirs = seconds = 0.0
    count = 0
    for step in range(TOKENS):
        open_ones = {a: ids for a, ids in zip(answers, written, strict=True) if step < len(ids)}
        best = {}
        for answer, ids in open_ones.items():
            answer.tokens[:] = ids[:step]
            prompt = policy.encode(answer.job.plan.streams[0].prompt[0].messages)  # type: ignore[union-attr]
            logits = policy.model(torch.tensor([[*prompt, *answer.tokens]])).logits[0, -1]
            best[answer] = logits.topk(TOP).indices.tolist()
        for answer in answers:
            answer.stop = "" if answer in open_ones else "eos"
        started = time.perf_counter()
        values = dict(company.speak(best))
        seconds += time.perf_counter() - started
        for answer, candidates in list(best.items())[: CONTEXTS - count]:
            count += 1
            ours += max(range(TOP), key=lambda i: values[answer][i]) == 0
            prompt = guide.encode(answer.job.plan.streams[0].prompt[0].messages)  # type: ignore[union-attr]
            own = covers.own(tuple(answer.tokens))
            logits = guide.model(torch.tensor([[*prompt, *own]])).logits[0, -1]
            first = [(covers.own((token,)) or (0,))[0] for token in candidates]
            tied = [i for i in range(TOP) if logits[first[i]] == logits[first].max()]
            theirs += (0 in tied) / len(tied)  # several candidates may begin with one sub-token
    policy.guests.clear()
    return ours / count, theirs / count, seconds / count, count


@pytest.mark.parametrize(("merges", "least"), [(10000, 0.9), (40000, 0.5)])
def test_a_guide_without_the_last_merges_mostly_agrees(
    smollm2: Policy, merges: int, least: float, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs, seconds, count = agreement(smollm2, vocabularies.shortened(smollm2, merges))
    with capsys.disabled():
        print(f"\nwithout {merges} merges, {count} contexts, {seconds:.3f} s each")
        print(f"covers {ours:.3f}, first sub-token {theirs:.3f}")
    assert ours >= least
