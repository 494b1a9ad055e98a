"""The implicit reward against a naive computation, and what it is for the base."""

from __future__ import annotations

import pytest
import torch

from personalign.plans import Chat, Plan, Stream
from personalign.policy.lora import LoRAConfig, parameters
from personalign.policy.policy import Policy
from personalign.reward.implicit import Implicit, ImplicitPrompt
from personalign.types import Message, Request, UserState

REQUEST = Request(id="r", user="u", messages=(Message("user", "How are you?"),))
TEXTS = ["Fine.", "Not so well, thank you for asking"]


@pytest.fixture
def adapted(tiny: Policy) -> Policy:
    tiny.add_adapter("one", LoRAConfig(4, 8, 0.0, ("q_proj", "up_proj")))
    for p in parameters(tiny.model, "one"):
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(p.shape[0]))
    return tiny


def naive(policy: Policy, stream: Stream, text: str) -> float:
    prompt, answer = policy.encode(stream.prompt[0].messages), policy.encode_answer(text)[:-1]  # type: ignore[union-attr]
    with policy.using(stream.deltas), torch.no_grad():
        logp = policy.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(logp[len(prompt) - 1 + i, t].item() for i, t in enumerate(answer))


def test_it_is_the_weighted_log_ratio_to_the_base(adapted: Policy) -> None:
    plain = (Chat(REQUEST.messages),)
    other = (Chat((Message("system", "Be short."), *REQUEST.messages)),)
    streams = (Stream(plain, -0.5), Stream(other, 1.5, (("one", 1.0),)))
    reward = Implicit(beta=0.1)
    reward.bind(adapted, lambda request: Plan(streams))
    for text, score in zip(TEXTS, reward.score(REQUEST, UserState(), TEXTS), strict=True):
        system = sum(s.weight * naive(adapted, s, text) for s in streams)
        assert score.total == pytest.approx(0.1 * (system - naive(adapted, Stream(plain), text)), abs=1e-3)


def test_the_base_has_no_preference_and_reads_nothing(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = Implicit(beta=0.1)
    reward.bind(tiny, lambda request: Plan((Stream((Chat(request.messages),)),)))
    monkeypatch.setattr(tiny, "hidden", lambda **inputs: pytest.fail("the network was run"))
    assert [s.total for s in reward.score(REQUEST, UserState(), TEXTS)] == [0.0, 0.0]


def test_many_requests_at_once_equal_one_by_one(adapted: Policy) -> None:
    reward = Implicit(beta=1.0)
    reward.bind(adapted, lambda request: Plan((Stream((Chat(request.messages),), 1.0, (("one", 1.0),)),)))
    requests = [Request(id=str(i), user="u", messages=(Message("user", "word " * i + "?"),)) for i in range(5)]
    together = reward.score_all([(r, UserState(), TEXTS) for r in requests])
    alone = [reward.score(r, UserState(), TEXTS) for r in requests]
    for a, b in zip(together, alone, strict=True):
        assert [s.total for s in a] == pytest.approx([s.total for s in b], abs=1e-3)


def test_a_stream_with_a_head_is_read_through_it(tiny: Policy) -> None:
    """PAD as released maps the last hidden state before the vocabulary; an identity map changes nothing."""
    plain = (Chat(REQUEST.messages),)
    linear = torch.nn.Linear(32, 32, bias=False)
    tiny.heads["pad"] = linear
    reward = Implicit(beta=1.0)
    reward.bind(tiny, lambda request: Plan((Stream(plain, 1.0, (), "pad"),)))
    with torch.no_grad():
        linear.weight.copy_(torch.eye(32))
        same = reward.score(REQUEST, UserState(), TEXTS)
        linear.weight.mul_(2.0)
        sharper = reward.score(REQUEST, UserState(), TEXTS)
    assert [s.total for s in same] == pytest.approx([0.0, 0.0], abs=1e-4)
    assert all(abs(s.total) > 0.1 for s in sharper)


def test_of_the_prompt_alone_it_is_the_log_ratio_of_one_policy(adapted: Policy) -> None:
    """Trained or not; without training it is the other one, and without another prompt nothing."""
    plain, shown = (
        (Chat(REQUEST.messages),),
        (Chat((Message("user", "Who?"), Message("assistant", "I."), *REQUEST.messages)),),
    )
    found = {}
    for kind in (Implicit, ImplicitPrompt):
        for deltas in ((), (("one", 1.0),)):
            for prompt in (plain, shown):
                reward, plan = kind(beta=0.5), Plan((Stream(prompt, 1.0, deltas),))
                reward.bind(adapted, lambda request, plan=plan: plan)  # type: ignore[misc]
                found[kind, deltas, prompt] = [score.total for score in reward.score(REQUEST, UserState(), TEXTS)]
    for deltas in ((), (("one", 1.0),)):
        likelier = [
            naive(adapted, Stream(shown, 1.0, deltas), t) - naive(adapted, Stream(plain, 1.0, deltas), t) for t in TEXTS
        ]
        assert found[ImplicitPrompt, deltas, shown] == pytest.approx([0.5 * ratio for ratio in likelier], abs=1e-3)
        assert found[ImplicitPrompt, deltas, plain] == [0.0, 0.0]
    assert found[ImplicitPrompt, (), shown] == pytest.approx(found[Implicit, (), shown], abs=1e-4)
    trained = (("one", 1.0),)
    assert all(
        abs(a - b) > 0.1
        for a, b in zip(found[ImplicitPrompt, trained, shown], found[Implicit, trained, shown], strict=True)
    )
