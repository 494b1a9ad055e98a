"""Soups: coefficients, and one stream that equals a model whose weights were merged beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.decoding.scoring import Reading, score_readings
from personalign.generation.features import simplex
from personalign.generation.soup import Soup
from personalign.plans import Chat, Plan, PolicySpec, Sampling, Stream
from personalign.policy import lora
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.policy.reference import standing
from personalign.types import Message, Request, Stance, UserState

ASK = Request(id="q", user="ada", messages=(Message("user", "What is tea?"),))
FEATURES = {name: ((f"f-{name}", 1.0),) for name in ("warmth", "grade")}
SPEC = PolicySpec(features=FEATURES)


def state(warmth: float, grade: float) -> UserState:
    return UserState(stance=Stance(("warmth", "grade"), (warmth, grade)))


def soup(weights: str, scale: float = 1.0, form: str = "delta") -> Soup:
    return Soup(weights=weights, scale=scale, form=form)  # type: ignore[arg-type]


def deltas(weights: str, warmth: float, grade: float, scale: float = 1.0) -> dict[str, float]:
    (stream,) = soup(weights, scale).plan(ASK, state(warmth, grade), SPEC).streams
    assert stream.prompt == (Chat(ASK.messages),) and stream.weight == 1.0
    return dict(stream.deltas)


def test_the_weights_are_the_coefficients() -> None:
    assert deltas("signed", 0.6, -0.8) == {"f-warmth": 0.6, "f-grade": -0.8}
    assert deltas("signed", 0.5, 0.25, scale=2.0) == {"f-warmth": 1.0, "f-grade": 0.5}
    assert deltas("simplex", 0.6, 0.2) == pytest.approx({"f-warmth": 0.75, "f-grade": 0.25})
    assert deltas("simplex", 0.6, -0.8) == {"f-warmth": 1.0}
    assert deltas("simplex", -0.6, -0.8) == {} == deltas("signed", 0.0, 0.0)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5))
def test_the_projection_lies_on_the_simplex_and_leaves_it_alone(weights: list[float]) -> None:
    found = simplex(weights)
    assert all(w >= 0 for w in found) and (not any(found) or sum(found) == pytest.approx(1))
    assert simplex(found) == pytest.approx(found)


def test_a_feature_that_is_a_soup_itself_keeps_its_coefficients() -> None:
    spec = PolicySpec(features={"warmth": (("a", 0.5), ("b", -1.0)), "grade": (("c", 1.0),)})
    (stream,) = soup("signed").plan(ASK, state(0.5, 1.0), spec).streams
    assert stream.deltas == (("a", 0.25), ("b", -0.5), ("c", 1.0))


def test_a_dimension_without_a_feature_is_named() -> None:
    with pytest.raises(UserError, match="stance on 'grade', but no feature"):
        soup("simplex").plan(ASK, state(1.0, -1.0), PolicySpec(features={"warmth": ()}))
    assert soup("signed").plan(ASK, UserState(), SPEC) == Plan((Stream((Chat(ASK.messages),)),))


@pytest.fixture
def mixed(tiny: Policy) -> Policy:
    """Two strong random adapters on different layers."""
    for seed, (name, targets) in enumerate([("f-warmth", ("q_proj", "down_proj")), ("f-grade", ("v_proj", "q_proj"))]):
        tiny.add_adapter(name, LoRAConfig(4, 8.0, 0.0, targets))
        for parameter in lora.parameters(tiny.model, name):
            torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(seed))
    return tiny


def merge(policy: Policy, weights: dict[str, float]) -> None:
    """W + sum_k w_k (alpha / r) B_k A_k into the base's own weights."""
    with torch.no_grad():
        for _, layer in lora.layers(policy.model):
            for name, weight in weights.items():
                if name in layer.deltas:
                    delta = layer.delta(name)
                    layer.base.weight += weight * delta.scale * (delta.B @ delta.A)


def answer(policy: Policy, plan: Plan) -> tuple[tuple[int, ...], tuple[float, ...]]:
    drawn = Plan(plan.streams, sampling=Sampling(max_new_tokens=12))
    (response,) = Decoder(policy, 1).generate([Job("q", drawn)])
    return response.tokens, response.logprobs


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7), (0.8, -0.6)])
def test_it_answers_as_a_model_of_merged_weights(mixed: Policy, weights: tuple[float, float]) -> None:
    tokens, logprobs = answer(mixed, soup("signed").plan(ASK, state(*weights), SPEC))
    base = Plan((Stream((Chat(ASK.messages),)),))
    assert tokens != answer(mixed, base)[0]
    for vertex, name in ((1.0, "f-warmth"), (0.0, "f-grade")):
        if weights == (vertex, 1.0 - vertex):
            alone = Plan((Stream((Chat(ASK.messages),), 1.0, ((name, 1.0),)),))
            assert answer(mixed, alone) == (tokens, logprobs)
    merge(mixed, dict(zip(("f-warmth", "f-grade"), weights, strict=True)))
    expected = answer(mixed, base)
    assert tokens == expected[0] and logprobs == pytest.approx(expected[1], abs=1e-3)


def test_averaging_factors_would_be_another_model(mixed: Policy) -> None:
    """(sum w_i B_i) (sum w_j A_j) is not sum w_i B_i A_i: what the layer does is the latter."""
    layer = next(layer for _, layer in lora.layers(mixed.model) if len(layer.deltas) == 2)
    one, two = layer.delta("f-warmth"), layer.delta("f-grade")
    x = torch.randn(1, 3, layer.base.in_features, generator=torch.Generator().manual_seed(0))
    found = layer.mixture(x, (("f-warmth", 0.5), ("f-grade", 0.5)))
    products = 0.5 * one.scale * (one.B @ one.A) + 0.5 * two.scale * (two.B @ two.A)
    factors = one.scale * (0.5 * one.B + 0.5 * two.B) @ (0.5 * one.A + 0.5 * two.A)
    assert found is not None
    torch.testing.assert_close(found, x @ products.T, atol=1e-5, rtol=1e-4)
    assert float((found - x @ factors.T).detach().abs().max()) > 0.01


@pytest.fixture
def alike(tiny: Policy) -> Policy:
    """Two strong random adapters of one configuration."""
    for seed, name in enumerate(("f-warmth", "f-grade")):
        tiny.add_adapter(name, LoRAConfig(4, 8.0, 0.0, ("q_proj", "down_proj")))
        for parameter in lora.parameters(tiny.model, name):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(seed)).requires_grad_(
                False
            )
    return tiny


def merge_factors(policy: Policy, weights: dict[str, float], scale: float) -> None:
    """W + scale (alpha / r) (sum_k w_k B_k) (sum_k w_k A_k) into the base's own weights."""
    with torch.no_grad():
        for _, layer in lora.layers(policy.model):
            deltas = [(w, layer.delta(name)) for name, w in weights.items()]
            b, a = sum(w * d.B for w, d in deltas), sum(w * d.A for w, d in deltas)
            layer.base.weight += scale * 2.0 * (b @ a)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_factors_make_the_model_of_their_sums(alike: Policy, scale: float) -> None:
    plans = {form: soup("simplex", scale, form).plan(ASK, state(0.4, 0.6), SPEC) for form in ("delta", "factor")}
    found, delta = answer(alike, plans["factor"]), answer(alike, plans["delta"])
    assert found[0] != delta[0]
    readings = [Reading("q", plan, found[0]) for plan in plans.values()]
    by_delta, by_factor = score_readings(alike, readings, "")
    assert by_factor == pytest.approx(sum(found[1]), abs=1e-3) and abs(by_factor - by_delta) > 0.1
    merge_factors(alike, {"f-warmth": 0.4, "f-grade": 0.6}, scale)
    expected = answer(alike, Plan((Stream((Chat(ASK.messages),)),)))
    assert found[0] == expected[0] and found[1] == pytest.approx(expected[1], abs=1e-3)


@pytest.mark.parametrize(("weights", "name"), [((0.7, 0.0), "f-warmth"), ((-0.2, 0.5), "f-grade")])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_at_a_vertex_both_forms_are_its_adapter(
    alike: Policy, weights: tuple[float, float], name: str, scale: float
) -> None:
    alone = Plan((Stream((Chat(ASK.messages),), 1.0, ((name, scale),)),))
    tokens, logprobs = answer(alike, alone)
    for form in ("delta", "factor"):
        found = answer(alike, soup("simplex", scale, form).plan(ASK, state(*weights), SPEC))
        assert found[0] == tokens and found[1] == pytest.approx(logprobs, abs=1e-5)


def test_a_weight_vector_is_merged_once(alike: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = lora.merge

    def noted(model: Any, name: str, *rest: Any) -> LoRAConfig:
        made.append(name)
        return original(model, name, *rest)

    monkeypatch.setattr(lora, "merge", noted)
    plans = [soup("simplex", form="factor").plan(ASK, state(*w), SPEC) for w in ((0.4, 0.6), (0.2, 0.3), (0.5, 0.5))]
    answers = [answer(alike, plan) for plan in (*plans, *plans)]
    assert len(made) == 2 and answers[:3] == answers[3:] and answers[0] == answers[1] != answers[2]
    drawn = [Job(f"{i}", Plan(plan.streams, sampling=Sampling(max_new_tokens=12))) for i, plan in enumerate(plans)]
    together = {r.request: r for r in Decoder(alike, 8).generate(drawn)}
    assert [together[str(i)].tokens for i in range(3)] == [tokens for tokens, _ in answers[:3]] and len(made) == 2
    assert alike.spec.adapters == ("f-warmth", "f-grade"), "what was merged is nobody's to name"
    assert not any(p.requires_grad for p in lora.parameters(alike.model, made[0]))
    alike.reset()
    assert alike.merged == {} and alike.configs == {} and not list(lora.parameters(alike.model, made[0]))


def test_merging_leaves_the_policys_standing_and_random_state_alone(alike: Policy) -> None:
    before, state_before = standing(alike), torch.random.get_rng_state()
    with torch.inference_mode():
        deltas = alike.deltas_of(soup("simplex", form="factor").plan(ASK, state(0.4, 0.6), SPEC).streams[0])
    assert standing(alike) == before and torch.equal(torch.random.get_rng_state(), state_before)
    assert deltas == (("merged-0", 1.0),)
    with alike.using((("f-warmth", 1.0), *deltas)):  # a graph may run through what inference has made
        alike.hidden(inputs_embeds=alike.embedding.weight[None, :3].clone().requires_grad_()).sum().backward()


def test_factors_need_adapters_of_one_kind_and_weights_without_signs(mixed: Policy) -> None:
    plan = soup("simplex", form="factor").plan(ASK, state(0.4, 0.6), SPEC)
    with pytest.raises(UserError, match="the factors of f-warmth, f-grade cannot be averaged"):
        answer(mixed, plan)
    with pytest.raises(UserError, match="form=factor has no signed weights"):
        soup("signed", form="factor")
    assert soup("simplex", form="factor").plan(ASK, UserState(), SPEC).streams[0].deltas == ()
    assert mixed.deltas_of(Stream((), merge="factors")) == ()
