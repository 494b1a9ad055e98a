"""CoPe's DPO: which answers are rejected, what the loss is, and that no user learns from another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from personalign.alignment.cope import CoPe, PseudoNegatives
from personalign.alignment.own import adapter_name
from personalign.alignment.preference import Preference
from personalign.alignment.user_adapter import UserAdapter
from personalign.contracts import UserError
from personalign.generation.cope import CoPe as Generation
from personalign.plans import Deltas, Sampling
from personalign.policy import lora
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.policy import Policy
from personalign.types import Pair, UserState

Make = Callable[..., Any]


@pytest.fixture
def values(dpo_values: dict[str, Any]) -> dict[str, Any]:
    common = {"history": False, "together": 8, "batch_size": 2, "pairs": None}
    return {key: value for key, value in {**dpo_values, **common}.items() if key != "imitation"}


def cope(values: dict[str, Any], **changes: Any) -> CoPe:
    own = {"adapter": "cope", "samples": 3, "temperature": 1.0, "top_p": 0.95, "made_tokens": 6, "side_by_side": 8}
    return CoPe(**{**values, **own, "beta": 0.5, **changes})


@pytest.fixture
def start(make_policy: Make, given: Make, render: Any, make_fitting: Make, values: dict[str, Any]) -> Make:
    """A new policy whose users but u3 have adapters of their own."""

    def made(pairs: Sequence[Pair]) -> Policy:
        policy: Policy = make_policy()
        stage = UserAdapter(**{**values, "adapter": "user", "objective": "nll", "min_pairs": 1, "learning_rate": 0.05})
        stage.fit(policy, given([p for p in pairs if p.request.user != "u3"]), render, make_fitting("oppu"))
        return policy

    return made


def logp(policy: Policy, row: Branches, deltas: Deltas) -> list[Tensor]:
    """Log-probabilities of each answer's tokens, a row by itself."""
    with policy.using(deltas), torch.no_grad():
        return [answer_logprobs(policy, [Branches(row.prompt, (answer,))])[0] for answer in row.answers]


def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Preference, dict[str, list[int]], float]]:
    """The objective, the rows and the loss of every step."""
    found: list[tuple[Preference, dict[str, list[int]], float]] = []
    original = Preference.__call__

    def noted(self: Preference, batch: dict[str, list[int]]) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss, figures = original(self, batch)
        found.append((self, batch, float(loss.detach())))
        return loss, figures

    monkeypatch.setattr(Preference, "__call__", noted)
    return found


def test_the_rejected_answer_is_the_draw_that_is_least_the_users(start: Make, pairs: list[Pair]) -> None:
    policy = start(pairs)
    own = policy.user_deltas["u0"]
    rows = [Branches(tuple(policy.encode(p.request.messages)), ((70, 71),)) for p in pairs[:4]]
    drawn = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=6, n=4, seed=3)
    pseudo = PseudoNegatives(policy, (), drawn, 8)
    made, found = pseudo._draw("u0", rows), pseudo.against("u0", rows, own)
    for row, draws, pair in zip(rows, made, found, strict=True):
        rewards = [
            float((mine - shared).mean())
            for mine, shared in zip(logp(policy, draws, own), logp(policy, draws, ()), strict=True)
        ]
        assert len(set(draws.answers)) > 1 and max(rewards) - min(rewards) > 1e-3
        assert pair == Branches(row.prompt, ((70, 71), draws.answers[rewards.index(min(rewards))]))
    assert PseudoNegatives(policy, (), drawn, 3).against("u0", rows, own) == found, "whatever is side by side"


def test_the_first_loss_is_dpo_against_the_shared_policy(
    start: Make, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    policy = start(pairs)
    own = dict(policy.user_deltas)
    steps = seen(monkeypatch)
    stage = cope(values, steps=1, learning_rate=1e-9)
    figures = stage.fit(policy, given(pairs), render, make_fitting(micro_batch=2))
    ((objective, batch, loss),) = steps
    total = 0.0
    for user in ("u0", "u1", "u2"):
        name, losses = adapter_name("cope", user), []
        for i in batch[name]:
            row = objective.rows[name][i]
            (c, r), (c0, r0) = ([float(a.sum()) for a in logp(policy, row, deltas)] for deltas in (own[user], ()))
            losses.append(math.log1p(math.exp(-0.5 * ((c - c0) - (r - r0)))))
        total += sum(losses) / len(losses)
    assert loss == pytest.approx(total, abs=1e-3) and figures["users"] == 3
    chosen = {tuple(policy.encode_answer(p.chosen)) for p in pairs}
    assert all(row.answers[0] in chosen for rows in objective.rows.values() for row in rows)


def test_own_adapters_are_two_and_what_all_share_has_none_of_them(
    start: Make, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    policy = start(pairs)
    first = dict(policy.user_deltas)
    kept = [p.detach().clone() for p in lora.parameters(policy.model, first["u0"][0][0])]
    cope(values).fit(policy, given(pairs), render, make_fitting())
    assert policy.user_deltas == {u: (*first[u], (adapter_name("cope", u), 1.0)) for u in ("u0", "u1", "u2")}
    assert all(torch.equal(a, b) for a, b in zip(kept, lora.parameters(policy.model, first["u0"][0][0]), strict=True))
    assert all(bool(p.abs().max() > 0) for p in lora.parameters(policy.model, adapter_name("cope", "u0")))
    request = pairs[0].request
    user, shared = Generation(alpha=0.1, plausible=0.1).plan(request, UserState(), policy.for_user("u0")).streams
    assert user.deltas == policy.user_deltas["u0"] and shared.deltas == ()
    assert policy.for_user("u3").own == ()


def test_nobody_learns_from_another_nor_from_what_they_rejected(
    start: Make, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    steps = seen(monkeypatch)
    others = [
        replace(p, chosen="Something else.") if p.request.user == "u1" else replace(p, rejected="Whatever.")
        for p in pairs
    ]
    for name, some in (("one", pairs), ("other", others)):
        cope(values, steps=1).fit(start(pairs), given(some), render, make_fitting(name))
    one, other = (objective.rows for objective, _, _ in steps)
    same = {name: list(one[name]) == list(other[name]) for name in one}
    assert same == {adapter_name("cope", user): user != "u1" for user in ("u0", "u1", "u2")}


class Stop(Exception):
    """Anything that ends a process."""


def test_interrupted_and_resumed_equals_uninterrupted(
    start: Make, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stage = cope(values, together=2, checkpoint_every=2)
    expected = stage.fit(start(pairs), given(pairs), render, make_fitting("whole"))
    passes, original = iter(range(1, 100)), Preference.__call__

    def interrupted(self: Preference, batch: dict[str, list[int]]) -> tuple[Tensor, Mapping[str, Tensor]]:
        if next(passes) == 9:
            raise Stop
        return original(self, batch)

    cut = start(pairs)
    before = dict(cut.user_deltas)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Preference, "__call__", interrupted)
        stage.fit(cut, given(pairs), render, make_fitting("cut"))
    assert cut.user_deltas == before and not any(name.startswith("cope") for name in cut.configs)
    torch.manual_seed(7)
    assert stage.fit(start(pairs), given(pairs), render, make_fitting("cut")) == expected
    with monkeypatch.context() as patch:
        patch.setattr(PseudoNegatives, "_draw", None)  # what is trained is loaded, and nothing drawn
        assert stage.fit(start(pairs), given(pairs), render, make_fitting("cut")) == expected
    files = [sorted(make_fitting(name).folder.rglob("*.safetensors")) for name in ("whole", "cut")]
    assert len(files[0]) == len(files[1]) == 3
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True))


def test_without_adapters_of_users_there_is_nothing_to_train_further(
    make_policy: Make, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    with pytest.raises(UserError, match="put alignment=user_adapter before it"):
        cope(values).fit(make_policy(), given(pairs), render, make_fitting())
