"""Steering vectors that are trained in both directions, and those that are read off hidden states."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from personalign.alignment.activation_difference import ActivationDifference
from personalign.alignment.batches import Limits, encode
from personalign.alignment.bipo import BiPO, BothWays
from personalign.alignment.contrasts import contrasting
from personalign.alignment.losses import margins
from personalign.alignment.preference import Preference, references
from personalign.contracts import UserError
from personalign.policy.logprobs import Branches
from personalign.policy.policy import Policy
from personalign.policy.tiny import random_llama
from personalign.types import Pair

Make = Callable[..., Any]
DIMENSIONS = ("warmth", "grade")
ROWS = [
    Branches((5, 6, 7, 8), ((30, 31, 2), (40, 41, 42, 43, 2))),
    Branches((9, 10), ((50, 2), (51, 52, 53))),
    Branches((11, 12), ((60, 61, 2), (70, 2))),
]


@torch.no_grad()
def said(added: torch.Tensor, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """log pi(answer | prompt, A + added) of the plain model in float64, A behind its first layer."""
    model: Any = random_llama(32, 2, 4, 2, 512, 0).double()
    model.model.layers[0].register_forward_hook(lambda m, a, out: out + added.double())
    logp = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return sum(logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


def test_the_loss_is_the_papers_in_float64(policy: Policy) -> None:
    vectors = {}
    for seed, name in enumerate(DIMENSIONS):
        vectors[name] = policy.add_vector(name, 0).vector
        torch.nn.init.normal_(vectors[name], generator=torch.Generator().manual_seed(seed))
    rows = {"warmth": ROWS, "grade": ROWS[:2]}
    names = {name: name for name in DIMENSIONS}
    objective = BothWays(policy, rows, references(policy, rows, ()), names, (), 0.3, 7)
    seen = set()
    for step in range(3):
        objective.at(step)
        loss, figures = objective({"warmth": [0, 1, 2], "grade": [0, 1]})
        expected = 0.0
        for name, some in rows.items():
            for i, row in enumerate(some):
                d = objective.direction(name, i)
                v = vectors[name].detach()
                ratios = [said(d * v, row.prompt, a) - said(0 * v, row.prompt, a) for a in row.answers]
                expected += math.log1p(math.exp(-d * 0.3 * (ratios[0] - ratios[1]))) / len(some)
                seen.add(d)
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-4)
        assert set(figures) == {f"{name}/{told}" for name in names for told in ("loss", "accuracy", "margin")}
    assert seen == {1.0, -1.0}


def test_the_direction_is_a_fair_coin_that_depends_on_step_row_group_and_seed(policy: Policy) -> None:
    names = {name: name for name in DIMENSIONS}

    def drawn(seed: int, step: int, group: str) -> list[float]:
        objective = BothWays(policy, {}, {}, names, (), 0.1, seed)
        objective.at(step)
        return [objective.direction(group, row) for row in range(400)]

    base = drawn(0, 0, "warmth")
    assert base == drawn(0, 0, "warmth") and Counter(base)[1.0] == pytest.approx(200, abs=50)
    for other in (drawn(1, 0, "warmth"), drawn(0, 1, "warmth"), drawn(0, 0, "grade")):
        assert sum(a == b for a, b in zip(base, other, strict=True)) == pytest.approx(200, abs=50)


def contrasts(policy: Policy, pairs: list[Pair], dimension: str, render: Any) -> list[Branches]:
    prompts = [pair.request.messages for pair in pairs]
    return encode(policy, contrasting(pairs, prompts, dimension, 0.2, 8, "bipo"), render, Limits(200, 100))


def test_a_vector_learns_its_dimension_both_ways_as_it_would_alone(
    make_policy: Make, pairs: list[Pair], bipo_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    policy, alone, parts = make_policy(), make_policy(), make_policy()
    values = {**bipo_values, "steps": 12}
    figures = BiPO(**values).fit(policy, given(pairs), render, make_fitting("both"))
    assert policy.spec.vectors == {d: ((f"bipo-{d}", 1.0),) for d in DIMENSIONS}
    assert policy.spec.features == {} and policy.spec.adapters == () and policy.spec.aligned == ()
    assert figures["warmth/accuracy"] > 0.6 and "grade/loss" in figures
    assert not any(p.requires_grad for p in policy.model.parameters())
    for dimension in DIMENSIONS:
        rows = contrasts(policy, pairs, dimension, render)
        base = references(policy, {"g": rows}, ())["g"]
        for sign in (1.0, -1.0):
            steered = references(policy, {"g": rows}, ((f"bipo-{dimension}", sign),))["g"]
            assert sign * float(margins(steered, base).mean()) > 0.1, (dimension, sign)
    BiPO(**{**values, "dimensions": ["grade"]}).fit(alone, given(pairs), render, make_fitting("alone"))
    BiPO(**values).fit(parts, given(pairs), render, make_fitting("parts", micro_batch=1))
    for other in (alone, parts):
        one, two = (p.vectors["bipo-grade"].vector for p in (policy, other))
        torch.testing.assert_close(one, two, atol=2e-3, rtol=0)


class Stop(Exception):
    """Anything that ends a process."""


def test_stopped_and_resumed_it_ends_in_the_same_bytes_and_is_then_loaded(
    make_policy: Make,
    pairs: list[Pair],
    bipo_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = BiPO(**{**bipo_values, "steps": 7, "checkpoint_every": 2})
    whole, cut = make_policy(), make_policy()
    expected = stage.fit(whole, given(pairs), render, make_fitting("whole"))
    original, passes = Preference.__call__, iter(range(1, 1000))

    def interrupted(self: Preference, batch: dict[str, list[int]]) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        if next(passes) == 11:
            raise Stop
        return original(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Preference, "__call__", interrupted)
        stage.fit(cut, given(pairs), render, make_fitting("cut"))
    assert cut.vectors == {} and cut.spec.vectors == {}
    torch.manual_seed(5)
    random.seed(5)
    assert stage.fit(cut, given(pairs), render, make_fitting("cut")) == expected
    monkeypatch.setattr(Preference, "__call__", None)
    loaded = make_policy()
    assert stage.fit(loaded, given(pairs), render, make_fitting("cut")) == expected and loaded.spec == whole.spec
    for dimension in DIMENSIONS:
        vectors = [policy.vectors[f"bipo-{dimension}"].vector for policy in (whole, cut, loaded)]
        assert float(vectors[0].abs().max()) > 0.01 and all(torch.equal(vectors[0], v) for v in vectors[1:])
    with pytest.raises(UserError, match="two stages of alignment train a steering vector 'bipo-warmth'"):
        stage.fit(loaded, given(pairs), render, make_fitting("cut"))
    with pytest.raises(TypeError):  # another height is another vector
        BiPO(**{**bipo_values, "steps": 7, "height": 1.0}).fit(make_policy(), given(pairs), render, make_fitting("cut"))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_activation_differences_are_means_of_transformers_hidden_states(
    pooling: str,
    policy: Policy,
    pairs: list[Pair],
    difference_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
) -> None:
    stage = ActivationDifference(**{**difference_values, "pooling": pooling})
    figures = stage.fit(policy, given(pairs), render, make_fitting())
    assert policy.spec.vectors == {d: ((f"difference-{d}", 1.0),) for d in DIMENSIONS}
    model: Any = random_llama(32, 2, 4, 2, 512, 0).double()
    for dimension in DIMENSIONS:
        differences = []
        for row in contrasts(policy, pairs, dimension, render):
            states = []
            for answer in row.answers:
                with torch.no_grad():
                    found = model(torch.tensor([[*row.prompt, *answer]]), output_hidden_states=True).hidden_states[1]
                own = found[0, len(row.prompt) :]
                states.append(own.mean(0) if pooling == "mean" else own[-1])
            differences.append(states[0] - states[1])
        expected = torch.stack(differences)
        vector = policy.vectors[f"difference-{dimension}"]
        assert vector.layer == 0 and not vector.vector.requires_grad
        torch.testing.assert_close(vector.vector.double(), expected.mean(0), atol=1e-4, rtol=1e-3)
        assert figures[f"{dimension}/length"] == pytest.approx(float(expected.mean(0).norm()), rel=1e-3)
        right = (expected @ expected.mean(0) > 0).double().mean()
        assert figures[f"{dimension}/accuracy"] == pytest.approx(float(right), abs=0.01)


def test_messages_name_the_stage(
    policy: Policy, pairs: list[Pair], difference_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    with pytest.raises(UserError, match=r"lower alignment\.activation_difference\.min_gap"):
        values = {**difference_values, "min_gap": 9.0}
        ActivationDifference(**values).fit(policy, given(pairs), render, make_fitting())
    stage = ActivationDifference(**difference_values)
    stage.fit(policy, given(pairs), render, make_fitting())
    with pytest.raises(UserError, match="train a steering vector 'difference-warmth'"):
        stage.fit(policy, given(pairs), render, make_fitting())
