"""Decoding behind soft tokens that are embeddings of tokens is decoding behind these tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from personalign.contracts import UserError
from personalign.decoding import prefill
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.decoding.scoring import Reading, score_readings
from personalign.plans import Candidates, Chat, Plan, Sampling, Segment, Soft, Stream, Tokens
from personalign.policy.lora import LoRAConfig, parameters
from personalign.policy.policy import Policy
from personalign.policy.soft import SoftHead
from personalign.types import Message

SAID = {"ada": (40, 7, 99, 60, 61), "bo": (8, 120, 200, 30, 31)}
TEXTS = [
    "Hi",
    "Tell me about the sea.",
    "Why?",
    "A much longer prompt, so that padding matters.",
    "x",
    "Go on",
    "Seven",
]
ONE, TWO = (("one", 1.0),), (("one", 0.5), ("two", 1.5))


class Planted(SoftHead):
    """The embeddings of the tokens that a user is known for."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.tokens, self.table = 5, nn.Parameter(table.clone())

    def forward(self, asked: Sequence[tuple[str, ...]]) -> Tensor:
        return self.table[torch.tensor([SAID[args[0]] for args in asked])]


@pytest.fixture(params=[None, (1,)], ids=["all_layers", "upper_layer"])
def guided(tiny: Policy, request: pytest.FixtureRequest) -> Policy:
    """The tiny policy with two strong random adapters, many ends of text, and a head that makes soft tokens."""
    generator = torch.Generator().manual_seed(3)
    for name, targets in (("one", ("q_proj", "v_proj", "down_proj")), ("two", ("k_proj", "gate_proj"))):
        tiny.add_adapter(name, LoRAConfig(4, 8, 0.0, targets, request.param))
        for p in parameters(tiny.model, name):
            nn.init.normal_(p, std=0.15, generator=generator)
    tiny.heads["planted"] = Planted(tiny.embedding.weight.detach())
    tiny.stop_ids = tuple(range(2, 250, 9))
    return tiny


def segments(number: int, text: str, soft: bool) -> tuple[Segment, ...]:
    """Every third prompt has no soft tokens; the others are told of one user, or of the other."""
    said = Chat((Message("user", text),))
    if number % 3 == 2:
        return (said,)
    user = ("ada", "bo")[number % 3]
    return (Soft("planted", (user,)) if soft else Tokens(SAID[user]), said)


def plans(kind: str, soft: bool) -> list[Plan]:
    """Plans of one stream, or of several: behind soft tokens or none, under adapters or none."""
    found = []
    for i, text in enumerate(TEXTS):
        prompt, other, bare = segments(i, text, soft), segments(i + 1, text, soft), segments(2, text, soft)
        streams: tuple[Stream, ...] = (Stream(prompt, deltas=ONE if i % 2 else ()),)
        if kind == "several":
            streams = (Stream(bare), Stream(prompt, 1.7, ONE), Stream(other, -0.7, TWO), Stream(prompt, 0.4))
        found.append(Plan(streams, sampling=Sampling(max_new_tokens=16)))
    return found


def answers(policy: Policy, some: Sequence[Plan], size: int) -> list[tuple[Any, ...]]:
    made = {r.request: r for r in Decoder(policy, size).generate([Job(f"r{i}", p) for i, p in enumerate(some)])}
    told = (made[f"r{i}"] for i in range(len(some)))
    return [(r.tokens, r.logprobs, r.stop, r.cost.forward_tokens) for r in told]


@pytest.mark.parametrize("kind", ["one", "several"])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_answers_are_those_behind_the_tokens(guided: Policy, kind: str, size: int) -> None:
    found, expected = answers(guided, plans(kind, soft=True), size), answers(guided, plans(kind, soft=False), size)
    assert found == expected
    assert len({len(tokens) for tokens, *_ in found}) >= 3, "rows must leave the batch at different times"


@pytest.mark.parametrize("tokens", [1, 60])
def test_a_prefill_in_parts_gives_the_same(guided: Policy, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", tokens)
    found, expected = (answers(guided, plans("several", soft), 7) for soft in (True, False))
    assert [tokens for tokens, *_ in found] == [tokens for tokens, *_ in expected]


@pytest.mark.parametrize("rule", [Candidates("top_k", 5, stream=1), Candidates("plausible", fraction=0.2)])
def test_candidates_and_samples_are_the_same(guided: Policy, rule: Candidates) -> None:
    drawn = Sampling(temperature=1.0, n=2, max_new_tokens=8)
    found, expected = (
        Decoder(guided, 4).generate(
            [Job(f"r{i}", replace(p, candidates=rule, sampling=drawn)) for i, p in enumerate(plans("several", soft))]
        )
        for soft in (True, False)
    )
    assert [(r.request, r.tokens) for r in found] == [(r.request, r.tokens) for r in expected]


def test_prompts_are_shared_where_the_users_are_the_same(guided: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = guided.hidden
    monkeypatch.setattr(guided, "hidden", lambda **told: (rows.append(len(told["position_ids"])), forward(**told))[1])
    said = Chat((Message("user", "Hi"),))

    def behind(user: str, deltas: Any = ()) -> Stream:
        return Stream((Soft("planted", (user,)), said), deltas=deltas)

    both = Plan((behind("ada"), behind("bo", ONE)), sampling=Sampling(max_new_tokens=1, temperature=1.0, n=3))
    same = Plan((behind("ada"), behind("ada", ONE)), sampling=Sampling(max_new_tokens=1, temperature=1.0, n=3))
    Decoder(guided, 8).generate([Job("r", both)])
    Decoder(guided, 8).generate([Job("r", same)])
    assert rows == [2, 2], "each source is prefilled once for all samples"
    ada, bo, again = answers(guided, [Plan((behind(user),)) for user in ("ada", "bo", "ada")], 3)
    assert ada == again != bo


def test_scores_of_answers_are_those_behind_the_tokens(guided: Policy) -> None:
    draw = torch.Generator().manual_seed(0)
    given = [tuple(torch.randint(3, 259, (5 + i,), generator=draw).tolist()) for i in range(len(TEXTS))]
    found, expected = (
        score_readings(guided, [Reading("r", p, ids) for p, ids in zip(plans("several", soft), given, strict=True)], "")
        for soft in (True, False)
    )
    assert found == pytest.approx(expected, abs=1e-4) and len({round(value, 3) for value in found}) == len(found)


def test_soft_tokens_take_room_in_the_context(tiny: Policy) -> None:
    tiny.heads["planted"] = Planted(tiny.embedding.weight.detach())
    said = Chat((Message("user", "x" * 400),))
    text = len(tiny.encode(said.messages))
    fits, over = (Sampling(max_new_tokens=tiny.context - text - 5 + more) for more in (0, 1))
    tiny.stop_ids = tuple(range(259))  # whatever comes first is the end
    prompt = (Soft("planted", ("ada",)), said)
    assert Decoder(tiny, 1).generate([Job("r", Plan((Stream(prompt),), sampling=fits))])[0].cost.new_tokens == 1
    with pytest.raises(UserError, match=rf"request 'r' has a prompt of {text + 5} tokens"):
        Decoder(tiny, 1).generate([Job("r", Plan((Stream(prompt),), sampling=over))])
