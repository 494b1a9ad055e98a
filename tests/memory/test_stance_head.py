"""Memory that reads a stance in statements through the policy's head."""

from __future__ import annotations

import pytest
import torch

from personalign.memory.stance_head import StanceHead
from personalign.policy import heads
from personalign.policy.policy import Policy
from personalign.types import Event, Message, Request, UserState


def asked(user: str, time: float = 10.0) -> Request:
    return Request(id="r", user=user, messages=(Message("user", "Tea?"),), time=time)


def said(text: str, time: float) -> Event:
    return Event(id=f"e{time}", user="ann", time=time, kind="statement", payload={"text": text})


@pytest.fixture
def memory() -> StanceHead:
    memory = StanceHead()
    memory.observe(said("Be brief.", 1.0))
    memory.observe(said("Be warm, and tell me everything.", 2.0))
    return memory


@pytest.fixture
def trained(tiny: Policy) -> Policy:
    head = heads.StanceHead(("warmth", "grade"), 32)
    torch.manual_seed(0)
    with torch.no_grad():
        head.linear.weight.normal_()
    tiny.heads["stance"] = head
    return tiny


def test_without_a_policy_a_head_or_a_statement_there_is_no_stance(memory: StanceHead, tiny: Policy) -> None:
    assert memory.recall(asked("ann"), None) == UserState() == memory.recall(asked("ann"), tiny)
    tiny.heads["stance"] = heads.StanceHead(("warmth",), 32)
    assert memory.recall(asked("bob"), tiny) == UserState()


def test_the_newest_statement_before_the_request_is_read(memory: StanceHead, trained: Policy) -> None:
    head = trained.heads["stance"]
    assert isinstance(head, heads.StanceHead)
    newest, earlier = (head.stance(trained, t) for t in ("Be warm, and tell me everything.", "Be brief."))
    assert newest != earlier
    assert memory.recall(asked("ann"), trained).stance == newest
    assert memory.recall(asked("ann", time=2.0), trained).stance == earlier


def test_a_statement_is_read_once_for_each_head(
    memory: StanceHead, trained: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = memory.recall(asked("ann"), trained)
    with monkeypatch.context() as patch:
        patch.setattr(heads, "embed", None)
        assert memory.recall(asked("ann"), trained) == first
    trained.heads["stance"] = heads.StanceHead(("warmth", "grade"), 32)
    assert memory.recall(asked("ann"), trained).stance != first.stance
