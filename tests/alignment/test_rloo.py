"""RLOO on a tiny policy: its gradient, its optimum, and that draws depend on seed, step and prompt alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from personalign.alignment.penalty import Penalty
from personalign.alignment.rloo import RLOO
from personalign.alignment.rollouts import LeaveOneOut, Prompt
from personalign.contracts import Guide, UserError
from personalign.plans import Sampling
from personalign.policy import lora
from personalign.policy.loading import Tiny
from personalign.policy.logprobs import answer_logprobs
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.runtime.fitting import Fitting
from personalign.types import Message, Pair, Request

Make = Callable[..., Any]
AFTER = (("a", 1.0),)


def weights(policy: Policy, name: str = "rloo") -> list[torch.Tensor]:
    return [p.detach().clone() for p in lora.parameters(policy.model, name)]


def trained(values: dict[str, Any], guide: Guide, policy: Policy, data: Any, render: Any, fitting: Fitting) -> Any:
    stage = RLOO(**values)
    stage.bind(guide, lambda requests: [])
    return stage.fit(policy, data, render, fitting)


def strong(policy: Policy) -> Policy:
    """With an adapter `a` that says something, and several ends of text, so that answers differ in length."""
    policy.add_adapter("a", LoRAConfig(4, 8.0, 0.0, ("q_proj", "v_proj", "down_proj")))
    generator = torch.Generator().manual_seed(3)
    for parameter in lora.parameters(policy.model, "a"):
        torch.nn.init.normal_(parameter, std=0.15, generator=generator)
    policy.stop_ids = tuple(range(2, 60, 5))
    return policy


def course(policy: Policy, guide: Guide, **changes: Any) -> LeaveOneOut:
    texts = ["Hi", "Tell me about the sea.", "Why?", "A longer prompt, so that padding matters.", "x"]
    requests = [Request(id=f"r{i}", user="u", messages=(Message("user", text),)) for i, text in enumerate(texts)]
    prompts = [Prompt(request, tuple(policy.encode(request.messages))) for request in requests]
    values: dict[str, Any] = {
        "sampling": Sampling(temperature=1.0, max_new_tokens=12, n=4, seed=5),
        "side_by_side": 64,
        "penalty": Penalty(0.3, None, 1),
        "normalize": False,
    }
    return LeaveOneOut(policy, prompts, guide, (), AFTER, **{**values, **changes})


@pytest.mark.parametrize("normalize", [False, True])
def test_the_gradient_is_that_of_the_formula(normalize: bool, policy: Policy, make_guide: Callable[..., Guide]) -> None:
    """Written out in float64: answer by answer, in full forward passes of their own."""
    policy.model.double()
    policy = strong(policy)
    for parameter in lora.parameters(policy.model, "a"):
        parameter.data = parameter.data.double()
    practised = course(policy, make_guide(lambda text: float(len(text))), normalize=normalize)
    practised.begin(0, {"a": [0, 1, 3]})
    assert len({len(answer) for row in practised.made.rows for answer in row.answers}) > 3
    loss, figures = practised({"a": [0, 1, 3]})
    found = torch.autograd.grad(loss, lora.parameters(policy.model, "a"))

    def logp(prompt: Sequence[int], answer: Sequence[int], deltas: Any) -> torch.Tensor:
        with policy.using(deltas):
            scores = policy.model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        return torch.stack([scores[len(prompt) - 1 + i, t] for i, t in enumerate(answer)]).sum()

    advantages, chosen, returns = [], [], []
    for row in practised.made.rows:
        own = [logp(row.prompt, answer, AFTER) for answer in row.answers]
        with torch.no_grad():
            strayed = [o.detach() - logp(row.prompt, a, ()) for o, a in zip(own, row.answers, strict=True)]
        rewards = [float(len(policy.decode(list(answer)))) for answer in row.answers]
        some = [r - 0.3 * float(s) for r, s in zip(rewards, strayed, strict=True)]
        advantages += [some[i] - (sum(some) - some[i]) / 3 for i in range(4)]
        chosen += own
        returns += [float(s) for s in strayed]
    mean = sum(advantages) / 12
    spread = math.sqrt(sum((a - mean) ** 2 for a in advantages) / 11) + 1e-4 if normalize else 1.0
    objective = sum(-a / spread * c for a, c in zip(advantages, chosen, strict=True)) / 12
    expected = torch.autograd.grad(objective, lora.parameters(policy.model, "a"))  # type: ignore[arg-type]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)  # the decoder's log-probs are float32
    assert max(float(one.abs().max()) for one in expected) > 0.01
    assert float(figures["kl"]) == pytest.approx(sum(returns) / 12, abs=1e-4)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)  # baselines add up


def test_draws_depend_on_seed_step_and_prompt_and_on_nothing_beside_them(
    policy: Policy, make_guide: Callable[..., Guide]
) -> None:
    def drawn(numbers: list[list[int]], step: int = 0, **changes: Any) -> dict[int, tuple[tuple[int, ...], ...]]:
        practised, found = course(policy, make_guide(), **changes), {}
        for some in numbers:
            practised.begin(step, {"a": some})
            rows = practised.made.rows
            found |= {number: rows[practised.places[number]].answers for number in some}
        return found

    policy = strong(policy)
    together = drawn([[0, 1, 2, 3, 4]])
    assert len({answer for answers in together.values() for answer in answers}) > 15
    assert drawn([[4], [3, 0], [2, 1]]) == together
    assert drawn([[0, 1, 2, 3, 4]], side_by_side=3) == together
    other = Sampling(temperature=1.0, max_new_tokens=12, n=4, seed=6)
    assert all(drawn([[0, 1, 2, 3, 4]], step=1)[i] != together[i] for i in range(5))
    assert all(drawn([[0, 1, 2, 3, 4]], sampling=other)[i] != together[i] for i in range(5))


def test_a_prompt_twice_in_a_step_counts_twice(policy: Policy, make_guide: Callable[..., Guide]) -> None:
    practised = course(strong(policy), make_guide())
    practised.begin(0, {"a": [2, 2]})
    twice = practised({"a": [2, 2]})[1]
    practised.begin(0, {"a": [2]})
    assert twice == practised({"a": [2]})[1]


def test_it_reaches_the_optimum_of_reward_less_kl(
    policy: Policy,
    rloo_values: dict[str, Any],
    make_guide: Callable[..., Guide],
    given: Make,
    render: Any,
    make_fitting: Make,
) -> None:
    """Answers of one token: pi* = pi_ref exp(r / beta) / Z, and max E[r] - beta KL = beta log Z.

    The reward is that of a hidden state turned by half a radian, so that an adapter can reach the optimum. There all
    answers have the same return, so that draws make no noise.
    """
    beta, prompt = 0.5, (Message("user", "Yes or no?"),)
    pairs = [Pair(id=u, request=Request(id=u, user=u, messages=prompt), chosen="", rejected="") for u in "abcd"]
    ids = torch.tensor([policy.encode(prompt)])
    policy.decode = lambda tokens: str(tokens[0])  # type: ignore[method-assign]  # several tokens have the same text

    def chances() -> torch.Tensor:
        with policy.using(policy.spec.aligned), torch.no_grad():
            return policy.model(ids).logits[0, -1].double().log_softmax(-1)

    with torch.no_grad():
        hidden = policy.hidden(input_ids=ids)[0, -1]
        aside = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
        aside -= aside @ hidden / hidden.square().sum() * hidden
        turned = math.cos(0.5) * hidden + math.sin(0.5) * hidden.norm() * aside / aside.norm()
        reward = beta * policy.logits(turned - hidden).double()
    reference = chances()
    values = {**rloo_values, "beta": beta, "target_kl": None, "max_answer": 1, "samples": 32, "steps": 60}
    values |= {"learning_rate": 0.02, "warmup": 0.0, "schedule": "linear", "targets": ["down_proj", "o_proj"]}
    guide = make_guide(lambda text: float(reward[int(text)]))
    figures = trained(values, guide, policy, given(pairs), render, make_fitting(micro_batch=4))
    logp, wanted = chances(), (reference + reward / beta).log_softmax(-1)
    start = float((reference.exp() * reward).sum())
    best = beta * float((reference + reward / beta).logsumexp(-1))
    reached = float((logp.exp() * (reward - beta * (logp - reference))).sum())
    tv = [float((one.exp() - wanted.exp()).abs().sum()) / 2 for one in (reference, logp)]
    assert tv[0] > 0.2 and tv[1] < 0.03
    assert best - 0.01 * (best - start) < reached <= best + 1e-9
    assert figures["tokens"] == 1.0 and figures["kl"] > 0.1


def test_reward_rises_and_the_curve_tells(
    policy: Policy,
    pairs: list[Pair],
    rloo_values: dict[str, Any],
    make_guide: Callable[..., Guide],
    given: Make,
    render: Any,
    make_fitting: Make,
) -> None:
    values = {**rloo_values, "steps": 40, "samples": 8, "target_kl": None, "normalize": True}
    figures = trained(values, make_guide(), policy, given(pairs), render, make_fitting(micro_batch=4))
    (path,) = make_fitting().folder.rglob("curve.json")
    curve = json.loads(path.read_text())
    assert set(curve) == {"loss", "reward", "spread", "kl", "beta", "tokens", "ended"}
    assert sum(curve["reward"][-5:]) > 1.5 * sum(curve["reward"][:5]) > 0
    assert abs(curve["kl"][0]) < 1e-3 < curve["kl"][-1], "the first answers are the reference's"
    assert figures["beta"] == pytest.approx(0.05)
    assert policy.spec.aligned == (("rloo", 1.0),)


def test_the_size_of_a_micro_batch_changes_nothing(
    make_policy: Make,
    pairs: list[Pair],
    rloo_values: dict[str, Any],
    make_guide: Callable[..., Guide],
    given: Make,
    render: Any,
    make_fitting: Make,
) -> None:
    found = []
    for micro in (1, 2, 4):
        policy = make_policy()
        values = {**rloo_values, "side_by_side": 2 * micro, "normalize": True}
        trained(values, make_guide(), policy, given(pairs), render, make_fitting(f"m{micro}", micro_batch=micro))
        found.append(weights(policy))
    for other in found[1:]:
        assert all(float((a - b).abs().max()) < 2e-4 for a, b in zip(found[0], other, strict=True))


class Stop(Exception):
    """Anything that ends a process."""


@pytest.mark.parametrize("call", [7, 10, 11])
def test_interrupted_and_resumed_equals_uninterrupted(
    call: int,
    make_policy: Make,
    pairs: list[Pair],
    rloo_values: dict[str, Any],
    make_guide: Callable[..., Guide],
    given: Make,
    render: Any,
    make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two forward passes a step; the penalty has been adapted before the cut, and goes on from there."""
    values = {**rloo_values, "steps": 7, "checkpoint_every": 2}
    whole, cut = make_policy(), make_policy()
    expected = trained(values, make_guide(), whole, given(pairs), render, make_fitting("whole"))
    passes, original = iter(range(1, 1000)), LeaveOneOut.__call__

    def interrupted(self: LeaveOneOut, batch: Any) -> Any:
        if next(passes) == call:
            raise Stop
        return original(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(LeaveOneOut, "__call__", interrupted)
        trained(values, make_guide(), make_policy(), given(pairs), render, make_fitting("cut"))
    (last,) = make_fitting("cut").folder.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["practice"]["beta"] != 0.05
    torch.manual_seed(call)
    assert trained(values, make_guide(), cut, given(pairs), render, make_fitting("cut")) == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(cut), weights(whole), strict=True))
    assert expected["beta"] != 0.05 and max(float(w.abs().max()) for w in weights(cut)[1::2]) > 0


def test_it_is_loaded_where_nothing_has_changed_and_trained_where_something_has(
    make_policy: Make,
    pairs: list[Pair],
    rloo_values: dict[str, Any],
    make_guide: Callable[..., Guide],
    given: Make,
    render: Any,
    make_fitting: Make,
) -> None:
    values = {**rloo_values, "steps": 1}
    first, again = make_policy(), make_policy()
    expected = trained(values, make_guide(), first, given(pairs), render, make_fitting())

    def silent(text: str) -> float:
        raise AssertionError("asked again")

    assert trained(values, make_guide(silent), again, given(pairs), render, make_fitting()) == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))
    changes: list[tuple[dict[str, Any], str, list[Pair]]] = [
        ({}, "another guide", pairs),
        ({"samples": 2}, "letters", pairs),
        ({"target_kl": None}, "letters", pairs),
        ({"normalize": True}, "letters", pairs),
        ({"max_answer": 7}, "letters", pairs),
        ({}, "letters", pairs[:-1]),
    ]
    for number, (change, content, some) in enumerate(changes, start=2):
        guide = make_guide(content=content)
        trained({**values, **change}, guide, make_policy(), given(some), render, make_fitting())
        assert len(list((make_fitting().folder / "checkpoints").iterdir())) == number


def test_it_learns_on_top_of_what_came_before(
    policy: Policy,
    pairs: list[Pair],
    rloo_values: dict[str, Any],
    make_guide: Callable[..., Guide],
    given: Make,
    render: Any,
    make_fitting: Make,
) -> None:
    policy = strong(policy)
    policy.spec = replace(policy.spec, aligned=AFTER)
    kept = weights(policy, "a")
    values = {**rloo_values, "steps": 1}
    figures = trained(values, make_guide(), policy, given(pairs), render, make_fitting(micro_batch=4))
    assert policy.spec.aligned == (*AFTER, ("rloo", 1.0))
    assert all(torch.equal(a, b) for a, b in zip(kept, weights(policy, "a"), strict=True))
    assert abs(figures["kl"]) < 1e-3, "the reference is the policy as it stood, not the base"


def test_what_cannot_be_learned_from_is_said(
    policy: Policy,
    pairs: list[Pair],
    rloo_values: dict[str, Any],
    make_guide: Callable[..., Guide],
    given: Make,
    render: Any,
    make_fitting: Make,
) -> None:
    with pytest.raises(UserError, match="stage 'rloo' has no request to learn from"):
        trained(rloo_values, make_guide(), policy, given([]), render, make_fitting())
    with pytest.raises(UserError, match=r"the guide rates answers to 'r\d+' with \[nan, nan, nan\]"):
        trained(rloo_values, make_guide(lambda text: math.nan), policy, given(pairs), render, make_fitting())
    with pytest.raises(RuntimeError, match="call bind first"):
        RLOO(**rloo_values).fit(policy, given(pairs), render, make_fitting())
    assert policy.spec.adapters == () and policy.spec.aligned == ()


@pytest.mark.parametrize(("precision", "noise"), [("fp32", 1e-3), ("bf16", 0.5)])
def test_answers_are_those_of_the_policy_as_it_is(
    precision: Any,
    noise: float,
    pairs: list[Pair],
    rloo_values: dict[str, Any],
    make_guide: Callable[..., Guide],
    given: Make,
    render: Any,
    make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Decoding keeps copies of weights: none may be older than the last step, which here changes much."""
    policy = Tiny(hidden=32, layers=2, heads=4, kv_heads=2, context=512, seed=0).build(tmp_path, precision)
    moved, original = [], LeaveOneOut.__call__

    def compared(self: LeaveOneOut, batch: Any) -> Any:
        def sums(deltas: Any) -> torch.Tensor:
            with self.policy.using(deltas), torch.enable_grad():  # the way of training, which keeps no copies
                logp = answer_logprobs(self.policy, [self.made.rows[self.places[n]] for n in batch["rloo"]])
            return torch.stack([one.sum().detach() for one in logp]).double()

        own = self.made.kl[[self.places[n] for n in batch["rloo"]]].flatten() + sums(self.before)
        assert float((own - sums(self.after)).abs().max()) < noise
        moved.append(float((own - sums(self.before)).abs().max()))
        return original(self, batch)

    monkeypatch.setattr(LeaveOneOut, "__call__", compared)
    values = {**rloo_values, "learning_rate": 0.1, "warmup": 0.0, "schedule": "constant", "steps": 4}
    trained(values, make_guide(), policy, given(pairs), render, make_fitting(micro_batch=4))
    assert len(moved) == 4 and min(moved[1:]) > 4 * noise
