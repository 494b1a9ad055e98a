"""Rewards that read a head: what they read, one by one and all at once."""

from __future__ import annotations

import pytest
import torch

from personalign.contracts import Reward
from personalign.plans import Plan
from personalign.policy.features import Reader
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import BradleyTerryHead, LoReHead
from personalign.policy.vpl import VPLHead
from personalign.reward.learned import VPL, BradleyTerry, LoRe
from personalign.types import Message, Request, UserState

READER = Reader((), "last", 60, 60)
TEXTS = ["Fine.", "Not so well, thank you for asking", ""]
REWARDS: dict[str, type[Reward]] = {"bradley_terry": BradleyTerry, "lore": LoRe, "vpl": VPL}
VECTOR = (0.2, 0.5, 0.3)


def asked(number: int) -> Request:
    return Request(id=str(number), user=f"u{number}", messages=(Message("user", "word " * number + "?"),))


@pytest.fixture
def trained(tiny: Policy) -> Policy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = {
            "bradley_terry": BradleyTerryHead(32, READER),
            "lore": LoReHead(32, READER, ["u1", "u2"], 3),
            "vpl": VPLHead(32, READER, 8, 3),
        }
        for name, head in heads.items():
            for parameter in head.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            tiny.heads[name] = head
    return tiny


def bound(name: str, policy: Policy) -> Reward:
    reward = REWARDS[name]()
    reward.bind(policy, lambda request: Plan(()))
    return reward


@pytest.mark.parametrize("name", REWARDS)
def test_it_is_what_the_head_makes_of_the_last_state(name: str, trained: Policy) -> None:
    state = UserState(vectors={name: VECTOR, "other": (1.0,)})
    found = [score.total for score in bound(name, trained).score(asked(2), state, TEXTS)]
    head, expected = trained.heads[name], []
    for text in TEXTS:
        ids = trained.encode(asked(2).messages) + trained.encode_answer(text)
        with torch.no_grad():
            states = trained.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
            expected.append(float(head.rewards(states, torch.tensor(VECTOR))))  # type: ignore[operator]
    assert found == pytest.approx(expected, abs=1e-3) and len({round(value, 3) for value in found}) == 3


@pytest.mark.parametrize("name", REWARDS)
def test_many_requests_at_once_equal_one_by_one(name: str, trained: Policy) -> None:
    reward = bound(name, trained)
    states = [UserState(), UserState(vectors={name: VECTOR}), UserState(vectors={name: VECTOR[::-1]}), UserState()]
    many = [(asked(i), state, TEXTS[:i]) for i, state in enumerate(states)]
    together = reward.score_all(many)
    assert [len(scores) for scores in together] == [0, 1, 2, 3] and reward.score_all([]) == []
    for one, scores in zip(many, together, strict=True):
        assert [s.total for s in scores] == pytest.approx([s.total for s in reward.score(*one)], abs=1e-4)


@pytest.mark.parametrize("name", ["lore", "vpl"])
def test_a_vector_is_whose_reward_it_is(name: str, trained: Policy) -> None:
    reward = bound(name, trained)
    states = [UserState(), UserState(vectors={name: VECTOR}), UserState(vectors={name: VECTOR[::-1]})]
    found = [tuple(round(s.total, 4) for s in reward.score(asked(1), state, TEXTS)) for state in states]
    assert len(set(found)) == 3


def test_a_reward_without_its_head_is_a_bug(tiny: Policy) -> None:
    with pytest.raises(RuntimeError, match="head 'lore'"):
        bound("lore", tiny).score(asked(1), UserState(), TEXTS)
