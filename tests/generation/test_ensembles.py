"""Ensembles of predictions: the coefficients of their plans, and what they are equal to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalign.contracts import UserError
from personalign.generation.context_steering import ContextSteering
from personalign.generation.cope import CoPe
from personalign.generation.dexperts import DExperts
from personalign.generation.drift import Drift
from personalign.generation.mod import Mod
from personalign.generation.pad import Pad
from personalign.generation.prompting import in_system
from personalign.plans import Candidates, Chat, Deltas, Plan, PolicySpec, Stream
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.types import Message, Request, Stance, UserState

ASK = Request(id="q", user="ada", messages=(Message("user", "What is tea?"),))
PLAIN = (Chat(ASK.messages),)
NAMES = ("warmth", "length", "poetry")
FEATURES: dict[str, Deltas] = {name: ((f"pad_{name}", 1.0),) for name in NAMES}
SHARED, OWN = (("sft", 1.0),), (("mine", 1.0),)
SPEC = PolicySpec(aligned=SHARED, features=FEATURES, adapters=("sft", "pad_warmth", "pad_length"))
WEIGHTS = st.lists(st.floats(-1, 1), min_size=3, max_size=3)
DIVERGENCES = ("reverse_kl", "forward_kl", "jensen_shannon")


def state(*weights: float) -> UserState:
    return UserState(stance=Stance(NAMES[: len(weights)], weights))


def parts(plan: Plan) -> dict[Deltas, float]:
    """The weights of streams on the plain prompt, by their deltas."""
    assert {stream.prompt for stream in plan.streams} == {PLAIN}
    return {stream.deltas: stream.weight for stream in plan.simplified().streams}


# --- MOD -------------------------------------------------------------------------------------------


def mod(divergence: str, weights: str) -> Mod:
    return Mod(divergence=divergence, weights=weights)  # type: ignore[arg-type]


@given(WEIGHTS)
def test_signed_mod_is_pad_of_beta_one_with_every_token_a_candidate(weights: list[float]) -> None:
    values: dict[str, Any] = {"reference": "base", "base_sees_preference": False, "template": "{profile}"}
    pad = Pad(beta=1.0, top_k=1, score_every=1, placement="user", **values)
    ours = mod("reverse_kl", "signed").plan(ASK, state(*weights), SPEC)
    found, expected = parts(ours), parts(pad.plan(ASK, state(*weights), SPEC))
    for deltas in {*found, *expected}:
        assert found.get(deltas, 0.0) == pytest.approx(expected.get(deltas, 0.0), abs=1e-12)
    assert ours.candidates == Candidates() and ours.combine == "log_linear"


@given(WEIGHTS, st.sampled_from(DIVERGENCES))
def test_simplex_weights_sum_to_one_and_nobody_reads_what_is_wanted_less(weights: list[float], kind: str) -> None:
    plan = mod(kind, "simplex").plan(ASK, state(*weights), SPEC)
    found = parts(plan)
    wanted = {FEATURES[name]: w for name, w in zip(NAMES, weights, strict=True) if w > 0}
    if not wanted:
        assert plan == Plan((Stream(PLAIN),))
        return
    base = found.pop((), 0.0)
    assert base == 0.0 and sum(found.values()) == pytest.approx(1)
    total = sum(wanted.values())
    assert found == pytest.approx({deltas: w / total for deltas, w in wanted.items() if w / total})


def test_one_dimension_alone_is_its_policy_and_costs_no_more() -> None:
    for weights in ("simplex", "signed"):
        plan = mod("reverse_kl", weights).plan(ASK, state(1.0), SPEC)
        assert plan.streams == (Stream(PLAIN, 1.0, FEATURES["warmth"]),)


@pytest.mark.parametrize("kind", DIVERGENCES[1:])
def test_a_divergence_is_measured_from_the_base(kind: str) -> None:
    plan = mod(kind, "signed").plan(ASK, state(0.5, -0.25), SPEC)
    guides = Stream(PLAIN, 0.5, FEATURES["warmth"]), Stream(PLAIN, -0.25, FEATURES["length"])
    assert plan.streams == (Stream(PLAIN, 0.0), *guides) and plan.combine == kind
    kept = plan.simplified()
    assert kept.streams[kept.candidates.stream].deltas == () and kept.combine == kind


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_without_a_stance_the_base_answers_and_a_missing_feature_is_named(kind: str) -> None:
    for known in (UserState(), state(0.0, 0.0), state(-1.0)):
        assert mod(kind, "simplex").plan(ASK, known, SPEC) == Plan((Stream(PLAIN),))
    with pytest.raises(UserError, match="stance on 'poetry', but no feature"):
        mod(kind, "simplex").plan(ASK, state(1.0, 1.0, -1.0), PolicySpec(features=dict.fromkeys(NAMES[:2], ())))


# --- Drift -----------------------------------------------------------------------------------------

PROMPTS = {"warmth": "You are warm.", "length": "You say much."}


def drift(beta: float) -> Drift:
    return Drift(beta=beta, attributes=PROMPTS, top_k=None)


def test_drift_adds_what_each_system_prompt_changes_in_the_base() -> None:
    plan = drift(0.5).plan(ASK, state(0.5, -0.25), SPEC)
    prompts = [(Chat(in_system(ASK.messages, text)),) for text in PROMPTS.values()]
    moved = Stream(prompts[0], 1.0), Stream(prompts[1], -0.5)
    assert plan == Plan((Stream(PLAIN, 1.0, SHARED), *moved, Stream(PLAIN, -0.5)))
    assert sum(stream.weight for stream in plan.streams) == 1.0


def test_drift_s_small_model_may_be_another_one_and_learns_in_the_policy_s_place() -> None:
    part = Drift(beta=0.5, attributes=PROMPTS, top_k=7)
    plan = part.plan(ASK, state(0.5), replace(SPEC, model="guide"))
    warm = (Chat(in_system(ASK.messages, PROMPTS["warmth"])),)
    small = Stream(warm, 1.0, SHARED, model="guide"), Stream(PLAIN, -1.0, SHARED, model="guide")
    assert plan == Plan((Stream(PLAIN), *small), Candidates("top_k", k=7))


@given(st.floats(-0.5, 1), st.floats(0.3, 3))
def test_one_attribute_on_the_untrained_base_is_context_steering(weight: float, beta: float) -> None:
    known = UserState(profile=PROMPTS["warmth"], stance=state(weight).stance)
    steering = ContextSteering(strength=weight / beta - 1.0, template="{profile}", placement="system")
    ours = drift(beta).plan(ASK, known, PolicySpec()).simplified()
    theirs = steering.plan(ASK, known, PolicySpec())
    found, expected = ({s.prompt: s.weight for s in plan.streams if s.weight} for plan in (ours, theirs))
    for prompt in {*found, *expected}:
        assert found.get(prompt, 0.0) == pytest.approx(expected.get(prompt, 0.0), abs=1e-9)


def test_an_attribute_without_a_prompt_is_named_and_no_stance_is_the_trained_policy() -> None:
    with pytest.raises(
        UserError, match=r"on 'poetry', which no prompt .* generation\.attributes \(now length, warmth\)"
    ):
        drift(1.0).plan(ASK, state(0.0, 0.0, 1.0), SPEC)
    for known in (UserState(), state(0.0, 0.0, 0.0)):
        assert drift(1.0).plan(ASK, known, SPEC) == Plan((Stream(PLAIN, 1.0, SHARED),))


def test_the_shipped_attributes_are_all_that_can_be_inferred(make: Any) -> None:
    from personalign.ratings.dimensions import DIMENSIONS

    weights = dict.fromkeys(DIMENSIONS, 0.5)
    plan = make("drift").plan(ASK, UserState(stance=Stance.of(weights)), SPEC)
    assert len({stream.prompt for stream in plan.streams}) == len(DIMENSIONS) + 1


# --- CoPe ------------------------------------------------------------------------------------------


def test_a_users_adapter_is_contrasted_with_what_all_share(tiny: Policy, make: Any) -> None:
    for name in ("sft", "mine"):
        tiny.add_adapter(name, LoRAConfig(2, 4.0, 0.0, ("q_proj",)))
    tiny.spec = PolicySpec(aligned=SHARED, adapters=tiny.spec.adapters)
    tiny.user_deltas = {"ada": OWN}
    part = make("cope")
    assert part.plan(ASK, UserState(), tiny.for_user("ada")) == Plan(
        (Stream(PLAIN, 1.0, SHARED + OWN), Stream(PLAIN, -0.1, SHARED)), Candidates("plausible", fraction=0.1)
    )
    assert part.plan(ASK, UserState(), tiny.for_user("bo")) == Plan((Stream(PLAIN, 1.0, SHARED),))


def test_cope_without_a_contrast_is_the_users_own_policy() -> None:
    spec = PolicySpec(aligned=SHARED + OWN, own=OWN)
    plan = CoPe(alpha=0.0, plausible=0.1).plan(ASK, UserState(), spec).simplified()
    assert plan.streams == (Stream(PLAIN, 1.0, SHARED + OWN),)


# --- DExperts --------------------------------------------------------------------------------------


def dexperts(strength: float, expert: str | None, anti_expert: str | None) -> dict[Deltas, float]:
    part = DExperts(strength=strength, expert=expert, anti_expert=anti_expert, top_k=None)
    return parts(part.plan(ASK, UserState(), SPEC))


def test_experts_are_adapters_by_name_or_what_training_made_of_the_base() -> None:
    assert dexperts(1.0, None, None) == {(): 0.0, SHARED: 1.0}
    assert dexperts(2.0, None, None) == {(): -1.0, SHARED: 2.0}
    assert dexperts(0.0, "pad_warmth", "pad_length") == {(): 1.0}
    named = {(): 1.0, (("pad_warmth", 1.0),): 0.5, (("pad_length", 1.0),): -0.5}
    assert dexperts(0.5, "pad_warmth", "pad_length") == named
    with pytest.raises(UserError, match="no adapter 'pad_poetry': it has pad_length, pad_warmth, sft"):
        dexperts(1.0, "pad_poetry", None)


def test_the_proxy_is_the_further_model_beside_itself_untouched() -> None:
    part = DExperts(strength=0.5, expert=None, anti_expert=None, top_k=9)
    plan = part.plan(ASK, UserState(), replace(SPEC, model="guide"))
    proxy = Stream(PLAIN, 0.5, SHARED, model="guide"), Stream(PLAIN, -0.5, model="guide")
    assert plan == Plan((Stream(PLAIN), *proxy), Candidates("top_k", k=9))
    with pytest.raises(UserError, match="expert and anti-expert are one: add a stage of alignment"):
        part.plan(ASK, UserState(), PolicySpec(model="guide"))
