"""Encoders of histories: their losses against a float64 transcription, what learns, and for whom."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from personalign.alignment.dpo import DPO
from personalign.alignment.history_encoder import Behind, HistoryEncoder
from personalign.alignment.preference import Imitation, Preference
from personalign.contracts import UserError
from personalign.decoding.rows import prompt_ids
from personalign.generation.history_prefix import HistoryPrefix
from personalign.generation.plain import Plain
from personalign.policy import lora
from personalign.policy.history_tokens import HistoryTokens
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.policy import Policy
from personalign.policy.prefix import HEAD, history_prefix
from personalign.policy.tiny import random_llama
from personalign.types import Message, Pair, Request, UserState, Vector

Make = Callable[..., Any]


def unit(name: str) -> Vector:
    draw = random.Random(name)
    vector = torch.tensor([draw.gauss(0, 1) for _ in range(5)])
    return tuple((vector / vector.norm()).tolist())


def recalled(request: Request) -> UserState:
    """One to three texts of every user but u3, of whom nothing is known."""
    texts = tuple(unit(f"{request.user} {i}") for i in range({"u0": 1, "u1": 2, "u3": 0}.get(request.user, 3)))
    return UserState(history=texts, vectors={"request": unit(request.messages[-1].content)}) if texts else UserState()


def recall(requests: Sequence[Request]) -> list[UserState]:
    return [recalled(request) for request in requests]


@pytest.fixture
def values(dpo_values: dict[str, Any]) -> dict[str, Any]:
    lora = ("adapter", "rank", "alpha", "dropout", "targets", "depth", "imitation")
    mine = {"form": "attention", "tokens": 2, "instruction": 1, "hidden": 12, "objective": "dpo"}
    return {**{k: v for k, v in dpo_values.items() if k not in lora}, **mine}


def bound(values: dict[str, Any], told: Callable[..., list[UserState]] = recall) -> HistoryEncoder:
    stage = HistoryEncoder(**values)
    stage.bind(None, told)
    return stage


def branches(policy: Policy, pairs: Sequence[Pair]) -> list[Branches]:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(policy.encode_answer(text))

    return [Branches(tuple(policy.encode(p.request.messages)), (ids(p.chosen), ids(p.rejected))) for p in pairs]


def noted(monkeypatch: pytest.MonkeyPatch, kind: type) -> list[tuple[Any, dict[str, list[int]], float]]:
    """What every step of an objective was asked and came to."""
    found: list[tuple[Any, dict[str, list[int]], float]] = []
    original = kind.__call__  # type: ignore[operator]

    def call(self: Any, batch: dict[str, list[int]]) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss, figures = original(self, batch)
        found.append((self, batch, float(loss.detach())))
        return loss, figures

    monkeypatch.setattr(kind, "__call__", call)
    return found


def transcribed(policy: Policy, pairs: Sequence[Pair], objective: str, beta: float) -> float:
    """The loss pair by pair with an untouched float64 model fed with embeddings: no sharing, no padding, no cache."""
    model, head = random_llama(32, 2, 4, 2, 512, 0).double(), policy.heads[HEAD]
    embed = model.get_input_embeddings()

    def logp(soft: Tensor, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Tensor:
        inputs = torch.cat([soft.double(), embed(torch.tensor(prompt + answer))])[None]
        table = model(inputs_embeds=inputs).logits[0].log_softmax(-1)
        start = len(soft) + len(prompt) - 1
        return torch.stack([table[start + i, token] for i, token in enumerate(answer)])

    total = 0.0
    with torch.no_grad():
        for pair, row in zip(pairs, branches(policy, pairs), strict=True):
            segment = history_prefix(recalled(pair.request))
            assert segment is not None
            ours = [logp(head([segment.args])[0], row.prompt, answer) for answer in row.answers]
            bare = [logp(torch.zeros(0, 32), row.prompt, answer) for answer in row.answers]
            m = float((ours[0].sum() - bare[0].sum()) - (ours[1].sum() - bare[1].sum()))
            total += (
                float(-ours[0].mean())
                if objective == "nll"
                else float(torch.tensor(1 + 2.718281828459045 ** (-beta * m)).log())
            )
    return total / len(pairs)


@pytest.mark.parametrize("form", ["attention", "mean"])
@pytest.mark.parametrize("objective", ["dpo", "nll"])
def test_the_first_loss_is_that_of_a_model_fed_with_embeddings(
    make_policy: Make, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch, form: Any, objective: str,
) -> None:  # fmt: skip
    known = [pair for pair in pairs if pair.request.user != "u3"]
    stage = bound({**values, "form": form, "objective": objective, "steps": 1, "batch_size": 9, "learning_rate": 1e-9})
    steps = noted(monkeypatch, Preference if objective == "dpo" else Imitation)
    policy = make_policy()
    stage.fit(policy, given(pairs), render, make_fitting(micro_batch=9))
    ((_, batch, loss),) = steps
    assert sorted(batch[HEAD]) == list(range(9)), "users without a history teach nothing"
    assert loss == pytest.approx(transcribed(policy, known, objective, values["beta"]), abs=2e-5)


def test_the_encoder_learns_and_nothing_else(
    make_policy: Make, pairs: list[Pair], values: dict[str, Any], dpo_values: dict[str, Any], given: Make,
    render: Any, make_fitting: Make,
) -> None:  # fmt: skip
    policy = make_policy()
    DPO(**dpo_values).fit(policy, given(pairs), render, make_fitting())
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    stage = bound(values)
    head = stage.head(policy, 5, 0)
    figures = stage.fit(policy, given(pairs), render, make_fitting())
    assert {"loss", "accuracy", "margin"} <= set(figures) and policy.spec.heads == (HEAD,)
    assert policy.spec.aligned == (("aligned", 1.0),), "what was there stays in use"
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    changed = {
        name: not torch.equal(p, dict(head.named_parameters())[name])
        for name, p in policy.heads[HEAD].named_parameters()
    }
    assert all(changed.values()) and len(changed) == 6
    assert not any(p.requires_grad for p in [*policy.model.parameters(), *policy.heads.parameters()])
    assert lora.parameters(policy.model, "aligned")


def test_gradients_reach_the_encoder_alone(policy: Policy, pairs: list[Pair], values: dict[str, Any]) -> None:
    stage, known = bound(values), [pair for pair in pairs if pair.request.user != "u3"]
    policy.heads[HEAD] = stage.head(policy, 5, 0).requires_grad_(True)
    softs = [history_prefix(recalled(pair.request)) for pair in known]
    rows = Behind(policy, [soft for soft in softs if soft is not None], branches(policy, known))
    Imitation(policy, {HEAD: rows}, {HEAD: ()})({HEAD: [0, 1, 2, 3]})[0].backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in policy.heads[HEAD].parameters())
    assert all(p.grad is None for p in policy.model.parameters())


def opposed(user: str, number: int) -> Pair:
    """Users whose names begin alike choose alike, and the others the other way."""
    request = Request(id=f"{user}{number}", user=user, messages=(Message("user", f"Number {number}?"),), time=10.0)
    texts = ("A dog sings.", "The rain.")
    turned = user.startswith("b")
    return Pair(id=request.id, request=request, chosen=texts[turned], rejected=texts[not turned])


@pytest.mark.parametrize("form", ["attention", "mean"])
def test_users_that_training_did_not_see_are_served_by_their_history(
    make_policy: Make, values: dict[str, Any], given: Make, render: Any, make_fitting: Make, form: str
) -> None:
    def told(requests: Sequence[Request]) -> list[UserState]:
        mains = {"a": (1.0, 0.0, 0.0, 0.0, 0.0), "b": (0.0, 1.0, 0.0, 0.0, 0.0)}
        return [
            UserState(history=(mains[r.user[0]],) * 2, vectors={"request": unit(r.messages[-1].content)})
            if r.user[0] in mains
            else UserState()
            for r in requests
        ]

    policy = make_policy()
    pairs = [opposed(user, number) for number in range(4) for user in ("ada", "bo")]
    stage = bound({**values, "form": form, "steps": 30, "learning_rate": 0.03}, told)
    assert stage.fit(policy, given(pairs), render, make_fitting())["accuracy"] > 0.8
    asked = opposed("ada", 9).request
    texts = tuple(tuple(policy.encode_answer(text)) for text in ("A dog sings.", "The rain."))

    def margin(user: str) -> float:
        mine = replace(asked, user=user)
        plan = HistoryPrefix().plan(mine, told([mine])[0], policy.for_user(user))
        row = Branches(prompt_ids(policy, plan.streams[0]), texts)
        bare = Branches(tuple(policy.encode(asked.messages)), texts)
        ours, base = ([float(a.sum()) for a in answer_logprobs(policy, [one])] for one in (row, bare))
        return (ours[0] - base[0]) - (ours[1] - base[1])

    assert margin("anna") > 2 and margin("ben") < -2, "neither was in training"
    assert margin("carl") == pytest.approx(0.0, abs=1e-5), "without a history the prompt is the plain one"


def test_generation_puts_before_the_prompt_what_training_put_there(
    policy: Policy, pairs: list[Pair], values: dict[str, Any], given: Make, make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    part, known = HistoryPrefix(), [pair for pair in pairs if pair.request.user != "u3"]
    steps = noted(monkeypatch, Preference)
    stage = bound(values)
    stage.fit(policy, given(pairs), lambda r: part.render(r, recalled(r)), make_fitting())
    rows = steps[0][0].rows[HEAD]
    planned = [part.plan(p.request, recalled(p.request), policy.for_user(p.request.user)) for p in known]
    assert [rows[i].prompt for i in range(len(rows))] == [prompt_ids(policy, plan.streams[0]) for plan in planned]
    nobody = next(pair.request for pair in pairs if pair.request.user == "u3")
    spec = policy.for_user("u3")
    assert part.plan(nobody, UserState(), spec) == Plain().plan(nobody, UserState(), spec)


class Stop(Exception):
    """Anything that ends a process."""


@pytest.mark.parametrize("call", [5, 11])
def test_interrupted_and_resumed_equals_uninterrupted(
    make_policy: Make, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch, call: int,
) -> None:  # fmt: skip
    stage = bound({**values, "checkpoint_every": 2})
    expected = stage.fit(make_policy(), given(pairs), render, make_fitting("whole"))
    passes, original = iter(range(1, 100)), Preference.__call__

    def interrupted(self: Preference, batch: dict[str, list[int]]) -> tuple[Tensor, Mapping[str, Tensor]]:
        if next(passes) == call:
            raise Stop
        return original(self, batch)

    cut = make_policy()
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Preference, "__call__", interrupted)
        stage.fit(cut, given(pairs), render, make_fitting("cut"))
    assert cut.spec.heads == () and len(cut.heads) == 0
    torch.manual_seed(call)
    assert stage.fit(make_policy(), given(pairs), render, make_fitting("cut")) == expected
    loaded = make_policy()
    assert stage.fit(loaded, given(pairs), render, make_fitting("cut")) == expected
    ((one,), (other,)) = (list(make_fitting(name).folder.rglob("*.safetensors")) for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()
    assert isinstance(loaded.heads[HEAD], HistoryTokens)


def test_another_history_is_another_training(
    make_policy: Make, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    def other(requests: Sequence[Request]) -> list[UserState]:
        states = recall(requests)
        return [replace(state, history=state.history[::-1]) for state in states]

    for told in (recall, other, recall):
        bound({**values, "steps": 1}, told).fit(make_policy(), given(pairs), render, make_fitting())
    assert len(list(make_fitting().folder.rglob("*.safetensors"))) == 2


def test_what_cannot_be_trained_is_named(
    policy: Policy, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    with pytest.raises(
        UserError, match=r"tokens=2 and instruction=1 of alignment leave no room for text in max_prompt=3"
    ):
        HistoryEncoder(**{**values, "max_prompt": 3})
    stage = bound(values, lambda requests: [UserState()] * len(requests))
    with pytest.raises(UserError, match="no user has a text before any of their training pairs"):
        stage.fit(policy, given(pairs), render, make_fitting())
    with pytest.raises(UserError, match="max_prompt 500 and max_answer 100 of alignment do not fit"):
        bound({**values, "max_prompt": 500}).fit(policy, given(pairs), render, make_fitting())
