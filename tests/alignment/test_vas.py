"""VAS's values: TD(lambda) as it is defined, the least squares that lambda 1 comes to, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from personalign.alignment.losses import td_lambda
from personalign.alignment.vas import HEAD, Beginnings, VASStage
from personalign.contracts import Guide, UserError
from personalign.plans import Rater
from personalign.policy.features import Reader
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import ValueHead
from personalign.runtime.fitting import Fitting
from personalign.types import Pair, Score

Make = Callable[..., Any]
NAMES = ("letters", "spaces")


def ratings(text: str) -> dict[str, float]:
    return {"letters": sum(c.isalpha() for c in text) / 4, "spaces": float(text.count(" "))}


def rated(texts: Sequence[str]) -> list[Score]:
    return [Score(ratings(text)["letters"], ratings(text)) for text in texts]


GUIDE = Guide(lambda asked: [rated(texts) for _, texts in asked], lambda requests: "ratings")


@pytest.fixture
def values(rloo_values: dict[str, Any]) -> dict[str, Any]:
    lora = {"adapter", "rank", "alpha", "targets", "depth", "beta", "target_kl", "horizon", "normalize"}
    own = {"dimensions": None, "prompts": None, "trace": 0.95, "samples": 4, "max_answer": 10}
    return {**{key: value for key, value in rloo_values.items() if key not in lora}, **own}


def trained(
    values: dict[str, Any], policy: Policy, data: Any, render: Any, fitting: Fitting, guide: Guide = GUIDE
) -> Any:
    stage = VASStage(**values)
    stage.bind(guide, lambda requests: [])
    return stage.fit(policy, data, render, fitting)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("trace", [0.0, 0.4, 0.95, 1.0])
def test_targets_are_the_mean_of_all_looks_ahead(trace: float) -> None:
    """G_t = (1 - lambda) sum_n lambda^(n-1) V_(t+n) + lambda^(T-t-1) r, with t from 0 and T tokens."""
    lengths = [5, 1, 3]
    v, r = draw(3, 5, 2), draw(3, 2)
    found = td_lambda(v, r, torch.tensor(lengths), trace)
    for i, length in enumerate(lengths):
        for t in range(length):
            looks = range(t + 1, length)
            expected = (trace ** (length - 1 - t)) * r[i]
            expected = expected + sum((1 - trace) * trace ** (j - t - 1) * v[i, j] for j in looks)
            torch.testing.assert_close(found[i, t], expected)


def beginnings(trace: float) -> Beginnings:
    states = [draw(length, 6) for length in (4, 1, 7)]
    head = ValueHead(6, Reader((), "last", 60, 60), NAMES).double()
    head.standardise(torch.cat(states))
    with torch.no_grad():
        head.linear.weight.copy_(draw(2, 6))
        head.linear.bias.copy_(draw(2))
    return Beginnings(head, states, draw(3, 2), trace)


def test_the_loss_is_the_error_of_every_token_and_targets_stand_still() -> None:
    some = beginnings(0.9)
    loss, figures = some({HEAD: [2, 0]})
    expected = []
    for i in (2, 0):
        own = some.head(some.states[i]).detach()
        targets = td_lambda(own[None], some.rewards[[i]], torch.tensor([len(own)]), 0.9)[0]
        expected.append((own - targets).square().mean())
    assert float(loss.detach()) == pytest.approx(float(sum(expected)) / 2, abs=1e-12)
    assert float(figures["reward"]) == pytest.approx(float(some.rewards[[0, 2]].mean()))
    # The gradient is that of targets which are constants.
    (gradient,) = torch.autograd.grad(loss, some.head.linear.bias)
    signed = []
    for i in (2, 0):
        own = some.head(some.states[i]).detach()
        targets = td_lambda(own[None], some.rewards[[i]], torch.tensor([len(own)]), 0.9)[0]
        signed.append((own - targets).mean(0))
    torch.testing.assert_close(gradient, sum(signed) / 2)


def test_lambda_one_comes_to_the_least_squares(
    policy: Policy, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made: list[Beginnings] = []
    init = Beginnings.__init__

    def kept(self: Beginnings, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(Beginnings, "__init__", kept)
    changes = {"trace": 1.0, "steps": 150, "batch_size": 16, "learning_rate": 0.2, "weight_decay": 0.0}
    figures = trained({**values, **changes, "prompts": 4}, policy, given(pairs), render, make_fitting(micro_batch=16))
    (some,) = made
    assert len(some.states) == 16, "four answers to each of four prompts"
    x = torch.cat([some.head.standard(states) for states in some.states]).double().numpy()
    y = torch.cat([r.expand(len(s), -1) for s, r in zip(some.states, some.rewards, strict=True)]).double().numpy()
    share = np.concatenate([np.full(len(s), len(s) ** -0.5) for s in some.states])[:, None]
    design = np.hstack([x, np.ones((len(x), 1))])
    found = np.linalg.lstsq(design * share, y * share, rcond=None)[0]
    best = float(((design @ found - y) ** 2 * share**2).sum() / 16 / 2)
    loss = float(some({HEAD: list(range(16))})[0].detach())
    start = float(((y - 0.0) ** 2 * share**2).sum() / 16 / 2)
    assert best - 1e-6 <= loss < best + 0.05 * (start - best)
    assert 0.1 < figures["explained"] < 1


def test_values_are_of_the_guides_dimensions_and_kept(
    policy: Policy, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make,
    make_policy: Make, make_guide: Callable[..., Guide],
) -> None:  # fmt: skip
    figures = trained(values, policy, given(pairs), render, make_fitting())
    assert policy.spec.raters == {"vas": Rater((), NAMES)} and policy.spec.heads == ("vas",)
    head = policy.heads["vas"]
    assert isinstance(head, ValueHead) and head.linear.weight.shape == (2, 32) and bool(head.linear.weight.any())
    again = make_policy()
    assert trained(values, again, given(pairs), render, make_fitting()) == figures
    assert again.spec == policy.spec
    states = [one.heads["vas"].state_dict() for one in (policy, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    trained({**values, "dimensions": ["spaces"]}, one := make_policy(), given(pairs), render, make_fitting())
    assert one.spec.raters == {"vas": Rater((), ("spaces",))}
    trained(values, total := make_policy(), given(pairs), render, make_fitting(), make_guide())
    assert total.spec.raters == {"vas": Rater()}
    assert total.heads["vas"].linear.weight.shape == (1, 32)  # type: ignore[union-attr]


def test_what_cannot_be_learned_from_is_named(
    policy: Policy, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make,
    make_guide: Callable[..., Guide],
) -> None:  # fmt: skip
    with pytest.raises(UserError, match="wants values of 'rhymes', and the guide rates letters, spaces"):
        trained({**values, "dimensions": ["rhymes"]}, policy, given(pairs), render, make_fitting())
    with pytest.raises(UserError, match="stage 'vas' has no request to learn from"):
        trained(values, policy, given([]), render, make_fitting())
    with pytest.raises(UserError, match=r"rates answers to .r0. with .*nan"):
        guide = make_guide(lambda text: float("nan"))
        trained(values, policy, given(pairs), render, make_fitting(), guide)


def test_the_size_of_a_micro_batch_changes_nothing(
    make_policy: Make, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    found = []
    for micro in (1, 4):
        trained(values, policy := make_policy(), given(pairs), render, make_fitting(f"m{micro}", micro_batch=micro))
        found.append(policy.heads["vas"].state_dict())
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])


class Stop(Exception):
    """Anything that ends a process."""


@pytest.mark.parametrize("call", [2, 5])
def test_interrupted_and_resumed_equals_uninterrupted(
    call: int, make_policy: Make, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any,
    make_fitting: Make, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole, cut = make_policy(), make_policy()
    expected = trained(values, whole, given(pairs), render, make_fitting("whole"))
    passes, original = iter(range(1, 1000)), Beginnings.__call__

    def interrupted(self: Beginnings, batch: Any) -> Any:
        if next(passes) == call:
            raise Stop
        return original(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Beginnings, "__call__", interrupted)
        trained(values, make_policy(), given(pairs), render, make_fitting("cut"))
    assert trained(values, cut, given(pairs), render, make_fitting("cut")) == expected
    states = [one.heads["vas"].state_dict() for one in (whole, cut)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
