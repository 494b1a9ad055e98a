"""Memories that a trained reward head serves: time, isolation, forgetting, and what is read how often."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from personalign.contracts import UserError
from personalign.memory.choices import HeadMemory
from personalign.memory.lore_weights import LoReWeights
from personalign.memory.vpl import VPL
from personalign.policy import features, reference
from personalign.policy.features import Reader
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import LoReHead
from personalign.policy.vpl import VPLHead
from personalign.runtime.traces import folder
from personalign.types import Event, Message, Request, UserState

READER = Reader((), "mean", 60, 60)


def lore_head() -> nn.Module:
    head = LoReHead(32, READER, ["seen", "other"], 3)
    with torch.no_grad():
        head.basis.mul_(20)
    return head


MEMORIES: dict[str, tuple[Callable[[], HeadMemory], Callable[[], nn.Module]]] = {
    "lore": (lambda: LoReWeights(strength=0.5), lore_head),
    "vpl": (VPL, lambda: VPLHead(32, READER, 8, 4)),
}


@pytest.fixture(params=MEMORIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def memory(name: str) -> HeadMemory:
    return MEMORIES[name][0]()


@pytest.fixture
def trained(name: str, tiny: Policy) -> Policy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny.heads[name] = MEMORIES[name][1]()
    return tiny


def chose(user: str, number: int, time: float | None = None) -> Event:
    payload = {"prompt": "Tea?", "chosen": f"Yes, {number} cups!", "rejected": f"No, {user}."}
    return Event(
        id=f"e{number}", user=user, time=float(number) if time is None else time, kind="choice", payload=payload
    )


def asked(user: str, time: float = 10.0) -> Request:
    return Request(id="r", user=user, messages=(Message("user", "Tea?"),), time=time)


def test_before_training_there_is_no_vector(memory: HeadMemory, tiny: Policy) -> None:
    memory.observe(chose("ann", 1))
    assert memory.recall(asked("ann"), None) == UserState() == memory.recall(asked("ann"), tiny)


def test_only_what_came_before_the_request_counts(memory: HeadMemory, trained: Policy, name: str) -> None:
    for number in (1, 2, 3):
        memory.observe(chose("ann", number))
    unaware = MEMORIES[name][0]()
    unaware.observe(chose("ann", 1))
    late = memory.recall(asked("ann"), trained).vectors
    early = memory.recall(asked("ann", time=2.0), trained).vectors
    assert early.keys() == late.keys() and early[name] != late[name]
    alone = unaware.recall(asked("ann"), trained).vectors
    assert all(early[key] == pytest.approx(alone[key], abs=1e-5) for key in early)


def test_users_do_not_meet(memory: HeadMemory, trained: Policy, name: str) -> None:
    memory.observe(chose("ann", 1))
    nothing = memory.recall(asked("bob"), trained).vectors[name]
    ann = memory.recall(asked("ann"), trained).vectors[name]
    assert nothing != ann
    memory.observe(chose("bob", 1))  # an id of bob's own
    assert memory.recall(asked("ann"), trained).vectors[name] == ann
    assert memory.recall(asked("bob"), trained).vectors[name] not in (ann, nothing)
    memory.forget("ann")
    assert memory.recall(asked("ann"), trained).vectors[name] == nothing
    assert "ann" not in memory._read
    memory.forget("ann")


def test_a_choice_is_read_once_for_each_head(
    memory: HeadMemory, trained: Policy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.observe(chose("ann", 1))
    first = memory.recall(asked("ann"), trained)
    with monkeypatch.context() as patch:
        patch.setattr(features, "answer_features", None)
        assert memory.recall(asked("ann"), trained) == first
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trained.heads[name] = MEMORIES[name][1]()
    assert memory.recall(asked("ann"), trained).vectors[name] != first.vectors[name]


def test_what_is_kept_of_choices_goes_when_their_user_is_forgotten(
    memory: HeadMemory, trained: Policy, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it lies elsewhere in the cache; what is there is read by another memory and is the same."""
    trained.cache = tmp_path / "cache"
    found = {}
    for user in ("ann", "bob"):
        memory.observe(chose(user, 1))
        found[user] = memory.recall(asked(user), trained).vectors
    files = {user: set(folder(trained.cache, user).rglob("*.safetensors")) for user in found}
    assert files["ann"] | files["bob"] == {path for path in trained.cache.rglob("*") if path.is_file()}
    again = MEMORIES[name][0]()
    again.observe(chose("ann", 1))
    with monkeypatch.context() as patch:
        patch.setattr(reference, "answer_states", None)
        assert again.recall(asked("ann"), trained).vectors == found["ann"]
    memory.forget("ann")
    assert files["ann"] and {path for path in trained.cache.rglob("*") if path.is_file()} == files["bob"] != set()


def test_a_choice_must_say_what_was_rejected(memory: HeadMemory) -> None:
    event = Event(id="a", user="ada", time=0.0, kind="choice", payload={"prompt": "?", "chosen": "Yes."})
    with pytest.raises(UserError, match="event 'a' of user 'ada' is a choice without rejected"):
        memory.observe(event)


def test_training_s_weights_are_the_prior_and_choices_move_them(tiny: Policy) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = lore_head()
    assert isinstance(head, LoReHead)
    tiny.heads["lore"] = head
    for strength, moved in ((0.05, True), (1e6, False)):
        memory = LoReWeights(strength=strength)
        memory.observe(chose("seen", 1))
        for user, prior in (("other", head.weights("other")), ("new", head.logits.softmax(-1).mean(0))):
            assert memory.recall(asked(user), tiny).vectors["lore"] == pytest.approx(prior.tolist(), abs=1e-6)
        found = memory.recall(asked("seen"), tiny).vectors["lore"]
        assert (found != pytest.approx(head.weights("seen").tolist(), abs=1e-3)) == moved
        states = READER.features(tiny, [READER.row(tiny, asked("").messages, ("Yes, 1 cups!", "No, seen."), "r")], "t")[
            0
        ]
        chosen, rejected = head.basis_rewards(states).tolist()
        before = sum(w * (a - b) for w, a, b in zip(head.weights("seen").tolist(), chosen, rejected, strict=True))
        after = sum(w * (a - b) for w, a, b in zip(found, chosen, rejected, strict=True))
        assert (after > before + 1e-3) == moved, "what was chosen is liked better"


def test_the_posterior_of_vpl_has_its_spread(tiny: Policy) -> None:
    tiny.heads["vpl"] = VPLHead(32, READER, 8, 4)
    memory = VPL()
    assert memory.recall(asked("ann"), tiny).vectors == {"vpl": (0.0,) * 4, "vpl_log_variance": (0.0,) * 4}
    memory.observe(chose("ann", 1))
    found = memory.recall(asked("ann"), tiny).vectors
    assert all(len(vector) == 4 and any(vector) for vector in found.values())
