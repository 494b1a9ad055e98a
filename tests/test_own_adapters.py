"""No answer, and no reward, of one user comes from another's adapter, however requests are interleaved."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from personalign import Experiment, compose
from personalign.alignment.own import adapter_name
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.generation.plain import Plain
from personalign.plans import Plan, Sampling
from personalign.policy import lora
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.policy.tiny import random_llama
from personalign.reward.implicit import Implicit
from personalign.system import System
from personalign.types import Message, Request, UserState

NEW = 8
USERS = ("ana", "ben", "carl", "nobody", "no one")
Model = Any


@pytest.fixture
def policy(tiny: Policy) -> Policy:
    """An adapter for all, and one each for three users: one of them in the upper layer alone."""
    configs = {name: LoRAConfig(4, 8.0, 0.0, ("q_proj", "v_proj")) for name in ("shared", "ana", "ben")}
    configs["carl"] = LoRAConfig(2, 8.0, 0.0, ("down_proj", "v_proj"), layers=(1,))
    for seed, (name, config) in enumerate(configs.items()):
        draw = torch.Generator().manual_seed(seed)
        for p in tiny.add_adapter(f"user-{name}", config):
            torch.nn.init.normal_(p, std=0.2, generator=draw)
    tiny.spec = replace(tiny.spec, aligned=(("user-shared", 1.0),))
    tiny.user_deltas = {user: ((f"user-{user}", 1.0),) for user in ("ana", "ben", "carl")}
    return tiny


def merged(policy: Policy, user: str) -> Model:
    """The same model by itself, with the user's weights added to its own."""
    model = random_llama(32, 2, 4, 2, 512, 0)
    with torch.no_grad():
        for path, layer in lora.layers(policy.model):
            for name, coefficient in policy.for_user(user).aligned:
                if name in layer.deltas:
                    delta = layer.delta(name)
                    model.get_submodule(path).weight += coefficient * delta.scale * delta.B @ delta.A
    return model


@torch.no_grad()
def greedy(model: Model, policy: Policy, prompt: list[int]) -> tuple[int, ...]:
    answer: list[int] = []
    while len(answer) < NEW and not (answer and answer[-1] in policy.stop_ids):
        answer.append(int(model(torch.tensor([prompt + answer])).logits[0, -1].argmax()))
    return tuple(answer)


def asked(draw: random.Random, count: int) -> list[Request]:
    """Few different prompts, so that users ask the same."""
    texts = ["Tea?", "A longer question, is it?", "No."]
    return [
        Request(id=f"r{i}", user=draw.choice(USERS), messages=(Message("user", draw.choice(texts)),))
        for i in range(count)
    ]


@pytest.fixture
def plan(policy: Policy) -> Callable[[Request], Plan]:
    def made(request: Request) -> Plan:
        found = Plain().plan(request, UserState(), policy.for_user(request.user))
        return Plan(found.streams, sampling=Sampling(max_new_tokens=NEW))

    return made


def test_answers_come_from_the_asker_s_adapter_alone(policy: Policy, plan: Callable[[Request], Plan]) -> None:
    models = {user: merged(policy, user) for user in USERS}
    expected: dict[tuple[str, Any], tuple[int, ...]] = {}
    for seed in range(8):
        draw = random.Random(seed)
        requests = asked(draw, draw.randint(2, 12))
        found = Decoder(policy, draw.randint(1, 8)).generate([Job(r.id, plan(r)) for r in requests])
        given = {response.request: response.tokens for response in found}
        assert len(given) == len(requests)
        for r in requests:
            key = (r.user, r.messages)
            if key not in expected:
                expected[key] = greedy(models[r.user], policy, policy.encode(r.messages))
            assert given[r.id] == expected[key], f"{r.user} in interleaving {seed}"
    by_user = {user: {k[1]: v for k, v in expected.items() if k[0] == user} for user in USERS}
    assert by_user["nobody"] == by_user["no one"] or len(by_user["nobody"]) < 3
    for one in ("ana", "ben", "carl"):
        for other in USERS:
            assert one == other or by_user[one] != by_user[other], "the adapters make a difference"


def test_implicit_rewards_see_the_user_s_own_policy(policy: Policy, plan: Callable[[Request], Plan]) -> None:
    reward = Implicit(beta=0.5)
    reward.bind(policy, plan)
    base = random_llama(32, 2, 4, 2, 512, 0)
    texts = ["Yes.", "Surely not."]

    @torch.no_grad()
    def logprob(model: Model, request: Request, text: str) -> float:
        prompt, answer = policy.encode(request.messages), policy.encode_answer(text)[:-1]
        scores = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return sum(float(scores[len(prompt) - 1 + i, t]) for i, t in enumerate(answer))

    models = {user: merged(policy, user) for user in USERS}
    for seed in range(3):
        requests = asked(random.Random(seed), 7)
        found = reward.score_all([(r, UserState(), texts) for r in requests])
        for r, scores in zip(requests, found, strict=True):
            for text, score in zip(texts, scores, strict=True):
                ratio = logprob(models[r.user], r, text) - logprob(base, r, text)
                assert score.total == pytest.approx(0.5 * ratio, abs=1e-3)


SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=6",
    "requests.limit=2",
    "requests.pairs=1",
    "data.users=4",
    "data.held_out=1",
    "data.pool=shipped",
    "debug=fast",
]


@pytest.mark.parametrize(("history", "users"), [("true", 4), ("false", 3)])
def test_a_run_trains_who_has_data_and_serves_everybody(tmp_path: Path, history: str, users: int) -> None:
    stage = ["alignment=[sft,user_adapter]", f"alignment.user_adapter.history={history}"]
    record = Experiment(compose([*SMALL, *stage, "alignment.user_adapter.min_pairs=1", f"paths.runs={tmp_path}"])).run()
    assert record["training"]["user_adapter"]["users"] == users
    folders = {path.parent.name for path in (tmp_path / "policies").rglob("adapter_config.json")}
    assert len([name for name in folders if name.startswith("user-")]) == users
    assert record["metrics"]["reward"]["users"] == 4


def test_the_plans_of_a_system_are_on_the_asker_s_own_policy(tmp_path: Path) -> None:
    stages = ["alignment=[sft,user_adapter]", "alignment.user_adapter.history=false", f"paths.runs={tmp_path}"]
    cfg = compose([*SMALL, *stages, "alignment.user_adapter.min_pairs=1"])
    system = System(cfg)
    system.prepare()
    Experiment(cfg)._align(system)
    seen = {pair.request.user for pair in system.data.pairs("train")}
    requests = system.requests()
    assert 0 < len(seen) < len({request.user for request in requests})
    for request in requests:
        own = ((adapter_name("user", request.user), 1.0),) if request.user in seen else ()
        assert system.plan(request).streams[0].deltas == (("sft", 1.0), *own)
    pairs = [next(pair for pair in system.data.pairs("test") if pair.request.user == user) for user in sorted(seen)]
    assert system.guide is not None
    asked = [(pair.request, UserState(), (pair.chosen, pair.rejected)) for pair in pairs]
    first = system.guide.score_all(asked)
    with torch.no_grad():
        for p in lora.parameters(system.policy.model, adapter_name("user", pairs[0].request.user)):
            p.normal_(std=0.3)
    second = system.guide.score_all(asked)
    assert first[0] != second[0] and first[1:] == second[1:], "the guide reads each user's own adapter"


def test_a_federated_run_with_local_adapters_behind_it(tmp_path: Path) -> None:
    stages = ["alignment=[federated,user_adapter]"]
    record = Experiment(compose([*SMALL, *stages, f"paths.runs={tmp_path}"])).run()
    assert record["training"]["federated"]["rounds"] >= 1
    longer = [*stages, "sampling.max_new_tokens=8", f"paths.runs={tmp_path}"]
    again = Experiment(compose([*SMALL, *longer])).run()
    assert again["training"] == record["training"], "what was learned is shared by runs"
