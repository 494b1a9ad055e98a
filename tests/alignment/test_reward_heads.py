"""Stages that train reward heads: their losses in float64, planted users, and what an interruption changes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from personalign.alignment.dpo import DPO
from personalign.alignment.lore import LoReStage, LowRank
from personalign.alignment.losses import bradley_terry_loss, gaussian_kl
from personalign.alignment.reward_head import BradleyTerryStage, Pooled
from personalign.alignment.vpl import Variational, VPLStage, annealing
from personalign.contracts import Memory, Reward, UserError
from personalign.memory.lore_weights import LoReWeights
from personalign.memory.vpl import VPL as VPLMemory
from personalign.plans import Plan
from personalign.policy.features import Reader
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import BradleyTerryHead, LoReHead
from personalign.policy.vpl import VPLHead
from personalign.reward.learned import VPL, BradleyTerry, LoRe
from personalign.runtime.seeds import derive
from personalign.types import Event, Message, Pair, Request, UserState

Make = Callable[..., Any]
READER = Reader((), "mean", 60, 60)
WIDTH = 6


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def seeded(seed: int, *names: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, *names))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def values(head_values: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in head_values.items() if key != "beta"}, "pooling": "mean"}


@pytest.fixture
def vpl_values(values: dict[str, Any]) -> dict[str, Any]:
    own = {"latent": 4, "hidden": 16, "context": 8, "kl_weight": 1e-3, "kl_start": 0.1, "kl_period": 4}
    return {**own, **values}


def test_closed_forms_of_the_losses() -> None:
    assert float(bradley_terry_loss(torch.tensor([2.0, 0.5]))) == pytest.approx(-math.log(sigmoid(1.5)))
    mean, log_variance = draw(3, 4), draw(3, 4) / 2
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()),
        torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean)),
    )
    torch.testing.assert_close(gaussian_kl(mean, log_variance), theirs.sum(-1))
    assert not gaussian_kl(torch.zeros(2), torch.zeros(2)).any()
    mean.requires_grad_()
    log_variance.requires_grad_()
    assert torch.autograd.gradcheck(gaussian_kl, (mean, log_variance))
    assert torch.autograd.gradcheck(bradley_terry_loss, (draw(5, 2).requires_grad_(),))


def test_the_kl_rises_along_half_a_cosine_over_and_over() -> None:
    found = [annealing(step, 4, 0.1) for step in range(6)]
    assert found == pytest.approx(
        [0.1, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2, 0.55, 0.55 + 0.45 * math.sqrt(0.5), 0.1, found[1]]
    )
    # The released annealer: (cos(pi (t / T - 1)) + 1) / 2, lifted from 0 to its baseline.
    released = [(math.cos(math.pi * (step / 4 - 1)) + 1) / 2 * 0.9 + 0.1 for step in range(4)]
    assert found[:4] == pytest.approx(released)


def test_the_low_rank_loss_is_the_mean_over_users_of_a_user_s_mean() -> None:
    users = ["ann", "ann", "bob", "ann", "bob", "eve"]
    head, features = LoReHead(WIDTH, READER, ["ann", "bob", "eve"], 3).double(), draw(6, 2, WIDTH)
    head.standardise(features.flatten(0, 1))
    objective = LowRank(head, features, users)
    loss, figures = objective({"lore": list(range(6))})
    v, w = head.basis.detach().numpy(), head.logits.detach().numpy()
    x = ((features[:, 0] - features[:, 1]) / head.scale).numpy()
    losses: dict[str, list[float]] = {}
    for i, user in enumerate(users):
        e = np.exp(w[["ann", "bob", "eve"].index(user)])
        losses.setdefault(user, []).append(-math.log(sigmoid(float(x[i] @ v.T @ (e / e.sum())))))
    assert float(loss.detach()) == pytest.approx(np.mean([np.mean(of_user) for of_user in losses.values()]), abs=1e-12)
    assert 0 <= float(figures["accuracy"]) <= 1
    assert torch.autograd.gradcheck(lambda *_: objective({"lore": [0, 2, 5]})[0], tuple(head.parameters()))


def test_the_evidence_bound_is_what_its_formula_says(monkeypatch: pytest.MonkeyPatch) -> None:
    head, features = VPLHead(WIDTH, READER, 5, 3).double(), draw(6, 2, WIDTH)
    noise = torch.stack([torch.randn(3, generator=seeded(7, "vpl", "3", row)) for row in "04"]).double()
    objective = Variational(head, features, ["ann"] * 3 + ["bob"] * 3, 2, lambda step: 0.5 * step, seed=7)
    contexts = torch.tensor([[1, 2], [5, 0]]), torch.tensor([[True, True], [True, False]])
    monkeypatch.setattr(objective, "contexts", lambda rows, draws: contexts)
    objective.at(3)
    loss, figures = objective({"vpl": [0, 4]})
    expected = []
    for i, (row, others) in enumerate(((0, [1, 2]), (4, [5]))):
        mean, log_variance = head.posterior(features[others][None], torch.ones(1, len(others), dtype=torch.bool))
        m, s = mean[0].detach().numpy(), np.exp(log_variance[0].detach().numpy() / 2)
        z = torch.from_numpy(m + s * noise[i].numpy())
        chosen, rejected = (float(head.rewards(features[row, j], z).detach()) for j in (0, 1))
        kl = sum(0.5 * (a * a + b * b - 1) - math.log(b) for a, b in zip(m, s, strict=True))
        expected.append((-math.log(sigmoid(chosen - rejected)), kl))
    assert float(loss) == pytest.approx(np.mean([loss + 1.5 * kl for loss, kl in expected]), abs=1e-12)
    assert float(figures["kl"]) == pytest.approx(np.mean([kl for _, kl in expected]), abs=1e-12)
    assert torch.autograd.gradcheck(lambda *_: objective({"vpl": [0, 4]})[0], tuple(head.parameters()))


def test_a_pair_draws_the_same_in_any_part_of_a_batch_and_anew_at_every_step() -> None:
    head, features = VPLHead(WIDTH, READER, 5, 3).double(), draw(8, 2, WIDTH)
    objective = Variational(head, features, ["ann"] * 4 + ["bob"] * 4, 2, lambda step: 1.0, seed=0)
    parts = [float(objective({"vpl": rows})[0]) for rows in ([0, 1, 6, 7], [0, 6], [7, 1])]
    assert parts[0] == pytest.approx((parts[1] + parts[2]) / 2, abs=1e-12)
    objective.at(1)
    assert abs(float(objective({"vpl": [0, 1, 6, 7]})[0]) - parts[0]) > 1e-6


def test_contexts_are_other_pairs_of_the_same_user() -> None:
    users = ["ann", "bob"] * 6 + ["eve"]
    objective = Variational(VPLHead(WIDTH, READER, 5, 3), draw(13, 2, WIDTH), users, 4, lambda step: 1.0, seed=0)
    sizes = set()
    for step in range(40):
        places, there = objective.contexts([0, 3, 12], [seeded(step, row) for row in "abc"])
        for row, some, filled in zip((0, 3, 12), places, there, strict=True):
            chosen = some[filled].tolist()
            assert row not in chosen and len(set(chosen)) == len(chosen)
            assert {users[place] for place in chosen} <= {users[row]}
            sizes.add((users[row], len(chosen)))
    assert sizes == {(user, n) for user in ("ann", "bob") for n in (1, 2, 3, 4)} | {("eve", 0)}


def test_the_bradley_terry_head_prefers_what_was_chosen_and_is_kept(
    policy: Policy,
    pairs: list[Pair],
    values: dict[str, Any],
    dpo_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
    make_policy: Make,
) -> None:
    stage = BradleyTerryStage(**{**values, "steps": 40, "learning_rate": 0.1})
    figures = stage.fit(policy, given(pairs), render, make_fitting())
    assert figures["accuracy"] > 0.9 and policy.spec.heads == ("bradley_terry",) and policy.spec.aligned == ()
    again = make_policy()
    assert stage.fit(again, given(pairs), render, make_fitting()) == figures
    weights = [one.heads["bradley_terry"].state_dict() for one in (policy, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # On top of an aligned policy it reads that policy.
    DPO(**{**dpo_values, "steps": 3}).fit(again := make_policy(), given(pairs), render, make_fitting())
    stage.fit(again, given(pairs), render, make_fitting())
    head = again.heads["bradley_terry"]
    assert isinstance(head, BradleyTerryHead) and head.reader.deltas == (("aligned", 1.0),)
    assert not torch.allclose(head.mean, weights[0]["mean"])


def test_bradley_terry_equals_logistic_regression_in_float64() -> None:
    head, features = BradleyTerryHead(WIDTH, READER).double(), draw(8, 2, WIDTH)
    with torch.no_grad():
        head.weight.copy_(draw(WIDTH))
    loss, _ = Pooled(head, features)({"bradley_terry": list(range(8))})
    w, x = head.weight.detach().numpy(), (features[:, 0] - features[:, 1]).numpy()
    assert float(loss) == pytest.approx(-np.mean([math.log(sigmoid(float(row @ w))) for row in x]), abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, head.weight)
    wrong = np.array([sigmoid(-float(row @ w)) for row in x])
    np.testing.assert_allclose(gradient.numpy(), -(wrong[:, None] * x).mean(0), atol=1e-12)


# Users of two opposed types, whose reward is a direction of the tiny model's own features.
SEEN, UNSEEN = [f"seen-{i}" for i in range(6)], [f"new-{i}" for i in range(4)]
LETTERS = "abcdefghijklmnop"


def sign(user: str) -> int:
    return 1 if int(user[-1]) % 2 == 0 else -1


class Planted:
    """Pairs of answers that differ clearly in one direction, judged by everybody."""

    def __init__(self, policy: Policy) -> None:
        drawn = random.Random(0)
        texts = [" ".join("".join(drawn.choices(LETTERS, k=4)) for _ in range(4)) for _ in range(320)]
        messages = (Message("user", "Say it."),)
        row = READER.row(policy, messages, texts, "r")
        features = READER.features(policy, [row], "planting")[0]
        scores = ((features - features.mean(0)) / features.std(0)) @ draw(features.shape[1]).float()
        gaps = [(float(scores[i] - scores[i + 1]), texts[i], texts[i + 1]) for i in range(0, len(texts), 2)]
        clear = sorted(gaps, key=lambda gap: -abs(gap[0]))[:120]
        drawn.shuffle(clear)
        self.train, self.test, self.told = clear[:80], clear[80:110], clear[110:]

    def pair(self, user: str, number: int, gap: float, one: str, other: str) -> Pair:
        texts = (one, other) if gap * sign(user) > 0 else (other, one)
        request = Request(id=f"{user}/{number}", user=user, messages=(Message("user", "Say it."),), time=100.0)
        return Pair(id=request.id, request=request, chosen=texts[0], rejected=texts[1])

    def pairs(self, users: Sequence[str], some: Sequence[tuple[float, str, str]]) -> list[Pair]:
        return [self.pair(user, n, *gap) for n, gap in enumerate(some) for user in users]

    def events(self, user: str) -> list[Event]:
        return [choice(pair, float(n)) for n, pair in enumerate(self.pairs([user], self.told))]

    def accuracy(self, users: Sequence[str], policy: Policy, reward: Reward, memory: Memory | None) -> float:
        pairs = self.pairs(users, self.test)
        states = [memory.recall(p.request, policy) if memory else UserState() for p in pairs]
        reward.bind(policy, lambda request: Plan(()))
        asked = [(p.request, s, (p.chosen, p.rejected)) for p, s in zip(pairs, states, strict=True)]
        margins = [chosen.total - rejected.total for chosen, rejected in reward.score_all(asked)]
        return sum(1.0 if m > 0 else 0.5 * (m == 0) for m in margins) / len(margins)


def choice(pair: Pair, time: float) -> Event:
    payload = {"prompt": "Say it.", "chosen": pair.chosen, "rejected": pair.rejected}
    return Event(id=pair.id, user=pair.request.user, time=time, kind="choice", payload=payload)


def remembering(memory: Memory, planted: Planted) -> Memory:
    for user in UNSEEN:
        for event in planted.events(user):
            memory.observe(event)
    return memory


@pytest.fixture
def planted(policy: Policy) -> Planted:
    return Planted(policy)


def test_opposed_users_cancel_in_a_pooled_reward(
    policy: Policy, planted: Planted, values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    pairs = planted.pairs(SEEN, planted.train)
    stage = BradleyTerryStage(**{**values, "steps": 60, "batch_size": 60, "learning_rate": 0.05})
    stage.fit(policy, given(pairs), render, make_fitting())
    assert planted.accuracy([*SEEN, *UNSEEN], policy, BradleyTerry(), None) == pytest.approx(0.5, abs=0.02)
    # It is the users that cancel: a pooled reward of one type alone serves this type.
    alone = [pair for pair in pairs if sign(pair.request.user) > 0]
    del policy.heads["bradley_terry"]
    stage.fit(policy, given(alone), render, make_fitting())
    assert planted.accuracy([u for u in UNSEEN if sign(u) > 0], policy, BradleyTerry(), None) > 0.85


def test_lore_serves_both_types_and_weighs_strangers_from_few_choices(
    policy: Policy, planted: Planted, values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    pairs = planted.pairs(SEEN, planted.train)
    stage = LoReStage(**{**values, "rank": 2, "steps": 100, "batch_size": 60, "learning_rate": 0.05})
    assert stage.fit(policy, given(pairs), render, make_fitting())["accuracy"] > 0.9
    memory = remembering(LoReWeights(strength=0.1), planted)
    assert planted.accuracy(UNSEEN, policy, LoRe(), memory) > 0.8
    assert planted.accuracy(SEEN, policy, LoRe(), memory) > 0.8, "their weights are those of training"
    assert planted.accuracy(UNSEEN, policy, LoRe(), None) == pytest.approx(0.5, abs=0.1), "nothing is known of them"
    both = [memory.recall(planted.pairs([user], planted.test)[0].request, policy) for user in UNSEEN[:2]]
    weights = [state.vectors["lore"] for state in both]
    assert sum(weights[0]) == pytest.approx(1) and abs(weights[0][0] - weights[1][0]) > 0.3


def test_vpl_tells_planted_types_apart(
    policy: Policy, planted: Planted, vpl_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    pairs = planted.pairs(SEEN, planted.train)
    stage = VPLStage(**{**vpl_values, "kl_period": 50, "steps": 200, "batch_size": 60, "schedule": "constant"})
    figures = stage.fit(policy, given(pairs), render, make_fitting())
    assert figures["kl"] > 0.01
    memory = remembering(VPLMemory(), planted)
    assert planted.accuracy(UNSEEN, policy, VPL(), memory) > 0.8
    assert planted.accuracy(UNSEEN, policy, VPL(), None) == pytest.approx(0.5, abs=0.1)
    asked = [planted.pairs([user], planted.test)[0].request for user in UNSEEN]
    z = np.array([memory.recall(request, policy).vectors["vpl"] for request in asked])
    apart, together = np.linalg.norm(z[0] - z[1]), np.linalg.norm(z[0] - z[2])
    assert apart > 3 * together, "users of one type are close"


class Stop(Exception):
    """Anything that ends a process."""


def test_an_interrupted_vpl_ends_as_if_it_never_had_been(
    pairs: list[Pair],
    vpl_values: dict[str, Any],
    given: Make,
    render: Any,
    make_policy: Make,
    make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = VPLStage(**{**vpl_values, "steps": 7, "checkpoint_every": 2, "kl_weight": 1.0, "kl_period": 7})
    whole, cut = make_policy(), make_policy()
    expected = stage.fit(whole, given(pairs), render, make_fitting("whole"))
    original = Variational.__call__
    calls = iter(range(1, 100))

    def stopped(self: Variational, batch: Any) -> Any:
        if next(calls) == 6:
            raise Stop
        return original(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Variational, "__call__", stopped)
        stage.fit(make_policy(), given(pairs), render, make_fitting("cut"))
    torch.manual_seed(5)
    assert stage.fit(cut, given(pairs), render, make_fitting("cut")) == expected
    found = [one.heads["vpl"].state_dict() for one in (whole, cut)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert float(found[0]["scale"].min()) > 0 and make_fitting("whole").folder.rglob("vpl.safetensors")


@pytest.mark.parametrize("stage", [BradleyTerryStage, LoReStage, VPLStage])
def test_another_seed_or_user_is_another_result_and_no_pairs_are_said(
    stage: type[Any],
    pairs: list[Pair],
    values: dict[str, Any],
    vpl_values: dict[str, Any],
    given: Make,
    render: Any,
    make_policy: Make,
    make_fitting: Make,
) -> None:
    own = {LoReStage: {**values, "rank": 2}, VPLStage: vpl_values}.get(stage, values)
    made = stage(**{**own, "steps": 2})
    for fitting in (make_fitting(), make_fitting(seed=1)):
        made.fit(make_policy(), given(pairs), render, fitting)
    made.fit(make_policy(), given(pairs[:-1]), render, make_fitting())
    assert len(list((make_fitting().folder / "checkpoints").iterdir())) == 3
    with pytest.raises(UserError, match=f"stage {made.head!r} has no pair to train on"):
        made.fit(make_policy(), given([]), render, make_fitting())
