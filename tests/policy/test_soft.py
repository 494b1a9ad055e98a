"""Soft tokens that are embeddings of tokens are these tokens, in every reading."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from personalign.contracts import UserError
from personalign.plans import Soft
from personalign.policy.heads import HiddenHead
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.policy import Policy
from personalign.policy.reference import sequence_logprobs
from personalign.policy.soft import SoftHead

SAID = {"ada": (40, 7, 99), "bo": (8, 120, 200), "cy": (3, 3, 44)}


class Planted(SoftHead):
    """The embeddings of the tokens that a user is known for."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.tokens = 3
        self.table = nn.Embedding.from_pretrained(policy.embedding.weight.detach().clone(), freeze=False)
        self.asked: list[list[tuple[str, ...]]] = []

    def forward(self, asked: Sequence[tuple[str, ...]]) -> Tensor:
        self.asked.append(list(asked))
        return self.table(torch.tensor([SAID[args[0]] for args in asked]))


@pytest.fixture
def planted(tiny: Policy) -> Policy:
    tiny.heads["planted"] = Planted(tiny)
    return tiny


def rows(policy: Policy, soft: bool) -> list[Branches]:
    """Rows of many lengths, with soft tokens before them, amid them, or none; or with what these stand for."""
    draw = random.Random(1)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 259) for _ in range(draw.randint(low, high)))

    def user(name: str) -> tuple[int, ...]:
        return policy.soft_ids(Soft("planted", (name,))) if soft else SAID[name]

    prompts = [
        user("ada") + ids(4, 9),
        ids(2, 12),
        user("bo") + ids(1, 3),
        ids(3, 3) + user("cy"),
        user("ada") + user("bo") + ids(5, 5),
        ids(20, 20),
    ]
    return [Branches(prompt, (ids(1, 9), ids(2, 12))) for prompt in prompts]


def test_readings_are_those_of_the_tokens_that_they_stand_for(planted: Policy) -> None:
    expected = answer_logprobs(planted, rows(planted, soft=False))
    found = answer_logprobs(planted, rows(planted, soft=True))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    alone = [one for row in rows(planted, soft=True) for one in answer_logprobs(planted, [row])]
    for one, other in zip(alone, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_each_user_is_asked_for_once_in_a_pass(planted: Policy) -> None:
    answer_logprobs(planted, rows(planted, soft=True))
    head = planted.heads["planted"]
    assert isinstance(head, Planted)
    assert head.asked == [[("ada",), ("bo",), ("cy",)]]


def test_rows_without_any_are_read_as_ever(planted: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[set[str]] = []
    forward = planted.hidden
    monkeypatch.setattr(planted, "hidden", lambda **given: (told.append(set(given)), forward(**given))[1])
    answer_logprobs(planted, rows(planted, soft=False))
    answer_logprobs(planted, rows(planted, soft=True))
    assert "input_ids" in told[0] and "inputs_embeds" not in told[0]
    assert "inputs_embeds" in told[1] and "input_ids" not in told[1]


def test_gradients_reach_the_head_and_are_those_of_the_embeddings(planted: Policy) -> None:
    torch.cat(answer_logprobs(planted, rows(planted, soft=True))).sum().backward()
    head = planted.heads["planted"]
    assert isinstance(head, Planted) and head.table.weight.grad is not None
    found, asked = head.table.weight.grad, sorted({i for ids in SAID.values() for i in ids})
    assert sorted(found.abs().sum(-1).nonzero()[:, 0].tolist()) == asked
    step = 0.02 * found[40] / found[40].norm()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            head.table.weight[40] += sign * step
            values.append(float(torch.cat(answer_logprobs(planted, rows(planted, soft=True))).sum()))
            head.table.weight[40] -= sign * step
    assert float(found[40] @ step) == pytest.approx((values[0] - values[1]) / 2, rel=0.02)


def test_numbers_are_a_segments_own(planted: Policy) -> None:
    ada, bo = (planted.soft_ids(Soft("planted", (name,))) for name in ("ada", "bo"))
    assert len(ada) == len(bo) == 3 and len({*ada, *bo}) == 6 and max(ada + bo) < 0
    assert planted.soft_ids(Soft("planted", ("ada",))) == ada
    planted.reset()
    with pytest.raises(UserError, match="the policy has no head 'planted' that makes soft tokens"):
        planted.soft_ids(Soft("planted", ("ada",)))


def test_a_head_of_another_kind_makes_none(tiny: Policy) -> None:
    tiny.heads["pad"] = HiddenHead(32)
    with pytest.raises(UserError, match="no head 'pad' that makes soft tokens"):
        tiny.soft_ids(Soft("pad"))


def test_what_they_make_of_answers_is_not_kept(planted: Policy, tmp_path: Path) -> None:
    """The files are named by the frozen weights and the ids: a head that goes on learning would find stale values."""
    soft = rows(planted, soft=True)
    first = sequence_logprobs(planted, soft, (), tmp_path / "cache", "soft")
    assert not (tmp_path / "cache").exists()
    head = planted.heads["planted"]
    assert isinstance(head, Planted)
    with torch.no_grad():
        head.table.weight[40] += 1.0
    second = sequence_logprobs(planted, soft, (), tmp_path / "cache", "soft")
    assert not torch.allclose(first[0], second[0]) and torch.equal(first[1], second[1])
    expected = torch.tensor([[float(a.detach().sum()) for a in answer_logprobs(planted, [row])] for row in soft])
    torch.testing.assert_close(second, expected, atol=1e-4, rtol=1e-5)
