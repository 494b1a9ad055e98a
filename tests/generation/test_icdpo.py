"""In-context DPO against the log-ratio written out, in a whole run on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from personalign import Experiment, compose
from personalign.generation.icdpo import ICDPO
from personalign.generation.in_context import InContext
from personalign.plans import Chat
from personalign.policy.policy import Policy
from personalign.system import System
from personalign.types import Message, Messages, Response, Score

SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=6",
    "sampling.temperature=1.0",
    "sampling.n=4",
    "requests.limit=2",
    "requests.pairs=1",
    "data.users=3",
    "data.pool=shipped",
    "memory=recency",
    "memory.recency.kinds=[choice]",
    "memory.recency.k=1",
    "generation=icdpo",
]


def logprob(policy: Policy, messages: Messages, text: str) -> float:
    prompt, answer = policy.encode(messages), policy.encode_answer(text)[:-1]
    if not answer:
        return 0.0
    with policy.using(()), torch.no_grad():
        logp = policy.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(logp[len(prompt) - 1 + i, t].item() for i, t in enumerate(answer))


def test_the_sample_is_given_whose_log_ratio_is_the_largest(tmp_path: Path) -> None:
    cfg = compose([*SMALL, f"paths.runs={tmp_path}"])
    record = Experiment(cfg).run()
    system = System(cfg)
    system.prepare()
    rows = [json.loads(line) for line in (tmp_path / record["identity"] / "samples-0.jsonl").read_text().splitlines()]
    others = 0
    for request in system.requests():
        made = sorted((row for row in rows if row["request"] == request.id), key=lambda row: row["sample"])
        prompt = system.render(request)
        assert len(made) == 4 and [m.role for m in prompt] == ["user", "assistant", "user"]
        texts = [row["text"] for row in made]
        ratios = [logprob(system.policy, prompt, t) - logprob(system.policy, request.messages, t) for t in texts]
        best = max(ratios)
        (given,) = [row["sample"] for row in made if row["selected"]]
        assert ratios[given] == pytest.approx(best, abs=1e-3)
        others += given != 0
    assert others, "the score had something to say"


def test_its_prompt_is_that_of_in_context(make: Any, ask: Any, state: Any, spec: Any) -> None:
    plan = make("icdpo").plan(ask, state, spec)
    assert plan == make("in_context").plan(ask, state, spec)
    (segment,) = plan.streams[0].prompt
    assert isinstance(segment, Chat) and Message("assistant", "Sky tears.") in segment.messages


def test_of_equals_the_first_and_a_lone_answer_stands() -> None:
    part = ICDPO(form="turns", template="{examples}", example="{prompt}{chosen}", budget=9)
    made = [Response(request="q", text=str(i), sample=i) for i in range(3)]
    assert part.select(made, [Score(0.0)] * 3) is made[0]
    assert part.select(made, [Score(0.0), Score(2.0), Score(2.0)]) is made[1]
    assert part.select(made[2:], None) is made[2]
    assert InContext.select(part, made, [Score(0.0), Score(1.0), Score(0.0)]) is made[0], (
        "it is the choice that differs"
    )
