"""What every way of generating plans, as it ships: the decoder's answers against an uncached float64 loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import reference as brute
from omegaconf import OmegaConf

from personalign.composition.build import build
from personalign.composition.home import home
from personalign.composition.parts import catalogue
from personalign.contracts import Generation
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.plans import Plan, Sampling
from personalign.policy.policy import Policy
from personalign.types import Message, Request, Response, Score, Snippet, Stance, UserState

CHOICES = sorted(part.choice for part in catalogue() if part.group == "generation")
Changes = dict[str, Any]
REFERENCES = ("backbone", "base", "none")
PADS: list[tuple[str, Changes]] = [
    (choice, {"reference": reference, "base_sees_preference": sees, "beta": 0.7})
    for choice in ("pad", "pad_scalar", "pad_released")
    for reference in REFERENCES
    for sees in (False, True)
]
HEADED: list[tuple[str, Changes]] = [
    (choice, {"head": "value", "reference": reference})
    for choice in ("pad_scalar", "pad_released")
    for reference in REFERENCES
]
VARIANTS: list[tuple[str, Changes]] = [
    *(
        ("mod", {"divergence": divergence, "weights": weights})
        for divergence in ("reverse_kl", "forward_kl", "jensen_shannon")
        for weights in ("simplex", "signed")
    ),
    *PADS,
    *HEADED,
    ("pad", {"score_every": 3}),
    ("soup", {"weights": "signed", "scale": 0.7}),
    ("genarm", {"top_k": 7}),
    ("in_context", {"form": "message"}),
]
SAID = {"prompt": "What is rain?", "chosen": "Sky tears.", "rejected": "Water."}
KNOWN = UserState(
    snippets=(Snippet("I love poems.", "e1", "ada", 2.0), Snippet("rain", "e2", "ada", 1.0, SAID)),
    profile="I like poetry.",
    stance=Stance(("warmth", "grade", "formality"), (0.5, 0.25, -1.0)),
    vectors={"lore": (0.2, 0.7, 0.1), "request": (1.0, 0.0)},
    history=((0.6, 0.8), (1.0, 0.0)),
)
# A user with an adapter of her own of whom much is known, and one of whom nothing is.
ASKED = [
    (Request(id="a", user="ada", messages=(Message("user", "What is tea?"),)), KNOWN),
    (Request(id="b", user="bo", messages=(Message("system", "Be kind."), Message("user", "Why?"))), UserState()),
]


def shipped(choice: str, **changes: Any) -> Generation:
    conf = home() / "conf"
    node = {"prompts": OmegaConf.load(conf / "config.yaml").prompts}
    node["part"] = OmegaConf.merge(OmegaConf.load(conf / "generation" / f"{choice}.yaml"), changes)
    part: Generation = build(OmegaConf.create(node).part)
    return part


def answered(policy: Policy, plans: Sequence[tuple[str, Plan]]) -> list[Response]:
    jobs = [Job(name, replace(plan, sampling=Sampling(max_new_tokens=6))) for name, plan in plans]
    made = {r.request: r for r in Decoder(policy, 8).generate(jobs)}
    return [made[name] for name, _ in plans]


def agree(twin: Policy, plan: Plan, response: Response) -> None:
    """Each token is the likeliest one behind those before it, and as likely as it is said to be."""
    for t, (token, logprob) in enumerate(zip(response.tokens, response.logprobs, strict=True)):
        expected = brute.step(twin, plan, list(response.tokens[:t]))
        assert expected[token] >= expected.max() - 1e-4 and logprob == pytest.approx(expected[token], abs=2e-3)


def check(policy: Policy, twin: Policy, part: Generation, known: UserState = KNOWN) -> list[Plan]:
    """Of both users; returns the plans."""
    asked = [(request, known if state is KNOWN else state) for request, state in ASKED]
    plans = [part.first(request, state, policy.for_user(request.user)) for request, state in asked]
    first = answered(policy, [(request.id, plan) for (request, _), plan in zip(asked, plans, strict=True)])
    for (request, state), plan, response in zip(asked, plans, first, strict=True):
        agree(twin, plan, response)
        line, spec = [watched(part, response)], policy.for_user(request.user)
        while (following := part.next(request, state, line, spec)) is not None:
            (made,) = answered(policy, [(request.id, following)])
            agree(twin, following, made)
            line.append(watched(part, made))
    return plans


def watched(part: Generation, response: Response) -> Response:
    """As a guide has scored it, for a workflow that is shown scores."""
    return replace(response, score=Score(0.0)) if part.watched else response


@pytest.mark.parametrize(("choice", "changes"), [*((choice, {}) for choice in CHOICES), *VARIANTS], ids=str)
def test_answers_are_those_of_the_plans_formula(furnished: Policy, twin: Policy, choice: str, changes: Changes) -> None:
    check(furnished, twin, shipped(choice, **changes))


@pytest.mark.parametrize(("choice", "changes"), [*PADS, *HEADED], ids=str)
def test_so_are_those_of_a_guide_that_is_a_further_model(
    hosting: Policy, host_twin: Policy, choice: str, changes: Changes
) -> None:
    told, _ = check(hosting, host_twin, shipped(choice, **changes))
    assert {stream.model for stream in told.streams} == {None, "guide"}


@pytest.mark.parametrize("scale", [1.0, 1.6])
def test_so_are_those_of_averaged_factors(
    furnished: Policy, twin: Policy, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """For which two dimensions need adapters of one kind; against a base whose own weights are changed."""
    alike = {"warmth": (("warmth", 1.0),), "grade": (("mellow", 1.0),)}
    for policy in (furnished, twin):
        monkeypatch.setattr(policy, "spec", replace(policy.spec, features=alike))
    wanted = replace(KNOWN, stance=Stance(("warmth", "grade"), (0.5, 0.25)))
    by_factor, by_delta = (shipped("soup", form=form, scale=scale) for form in ("factor", "delta"))
    told, _ = check(furnished, twin, by_factor, wanted)
    assert told.streams[0].merge == "factors" and len(told.streams[0].deltas) == 2
    other = by_delta.plan(ASKED[0][0], wanted, furnished.for_user("ada"))
    made, others = answered(furnished, [("a", told), ("b", other)])
    assert abs(made.logprobs[0] - others.logprobs[0]) > 0.01, "it is another model than the deltas' sum"


def test_every_choice_was_among_them() -> None:
    assert len(CHOICES) == 35
