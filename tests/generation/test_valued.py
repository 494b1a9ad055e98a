"""ARGS and VAS: what their plans are made of, and that a candidate is worth what the reward says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.decoding.scoring import Reading, score_readings
from personalign.generation.plain import Plain
from personalign.plans import Candidates, Chat, Plan, PolicySpec, Rater, Stream, Value
from personalign.policy.features import Reader
from personalign.policy.loading import Tiny
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import BradleyTerryHead, ValueHead
from personalign.reward.learned import BradleyTerry
from personalign.types import Request, Stance, UserState

NAMES = ("warmth", "grade", "formality")
READS = (("base", 1.0),)
SPEC = PolicySpec(
    aligned=(("dpo", 1.0),),
    raters={"bradley_terry": Rater(READS), "lore": Rater(READS), "vas": Rater(READS, NAMES)},
)


def stance(**weights: float) -> UserState:
    return UserState(stance=Stance.of(weights))


def test_args_adds_the_reward_to_the_policy_on_its_likeliest_tokens(make: Any, ask: Request) -> None:
    prompt = (Chat(ask.messages),)
    plan = make("args", weight=0.5, top_k=7).plan(ask, UserState(), SPEC)
    reward = Stream(prompt, 0.5, READS, Value("bradley_terry"))
    assert plan == Plan((Stream(prompt, deltas=SPEC.aligned), reward), Candidates("top_k", 7))
    shipped = make("args").plan(ask, UserState(), SPEC)
    assert shipped.candidates.k == 10 and shipped.streams[1].weight == 1.0, "the paper's"


def test_weight_zero_is_the_policy(make: Any, ask: Request) -> None:
    base = Plain().plan(ask, UserState(), SPEC).streams
    assert make("args", weight=0.0).plan(ask, UserState(), SPEC).simplified().streams == base
    assert make("vas", beta=0.0).plan(ask, stance(warmth=1.0), SPEC).simplified().streams == base
    for state in (UserState(), stance(), stance(warmth=0.0)):
        assert make("vas").plan(ask, state, SPEC).streams == base


def test_lore_is_told_the_user(make: Any, ask: Request) -> None:
    known = UserState(vectors={"lore": (0.2, 0.8), "vpl": (1.0,)})
    for state, told in ((known, (0.2, 0.8)), (UserState(), ())):
        assert make("args_lore").plan(ask, state, SPEC).streams[1].head == Value("lore", told)


def test_vas_weighs_the_dimensions_by_the_stance(make: Any, ask: Request) -> None:
    plan = make("vas", beta=2.0, top_k=5).plan(ask, stance(formality=-1.0, warmth=0.5), SPEC)
    expected = Stream((Chat(ask.messages),), 2.0, READS, Value("vas", (0.5, 0.0, -1.0)))
    assert plan.streams[1:] == (expected,) and plan.candidates == Candidates("top_k", 5)
    assert make("vas").plan(ask, stance(warmth=1.0), SPEC).candidates.k == 20, "the paper's"


def test_one_value_without_a_dimension_counts_for_everyone(make: Any, ask: Request) -> None:
    spec = replace(SPEC, raters={"vas": Rater()})
    for state in (UserState(), stance(warmth=1.0)):
        assert make("vas").plan(ask, state, spec).streams[1].head == Value("vas")


def test_what_is_missing_is_named(make: Any, ask: Request) -> None:
    with pytest.raises(UserError, match="no head 'bradley_terry' that rates answers: it has vas"):
        make("args").plan(ask, UserState(), replace(SPEC, raters={"vas": Rater()}))
    with pytest.raises(UserError, match="stance on 'length', but no value was trained for it: there are formality, gr"):
        make("vas").plan(ask, stance(length=1.0, warmth=1.0), SPEC)


@pytest.fixture
def policy() -> Policy:
    """Tiny, with strong heads: `bradley_terry` and `vas`."""
    built: Policy = Tiny(hidden=32, layers=2, heads=4, kv_heads=2, context=512, seed=0).build(Path(), "fp32")
    built.cache = None
    draw = torch.Generator().manual_seed(1)
    heads = {
        "bradley_terry": BradleyTerryHead(32, Reader((), "mean", 300, 50)),
        "vas": ValueHead(32, Reader((), "last", 300, 50), NAMES),
    }
    for name, head in heads.items():
        for weights in head.parameters():
            torch.nn.init.normal_(weights, std=3.0, generator=draw)
        built.heads[name] = head
    built.spec = PolicySpec(raters={"bradley_terry": Rater(), "vas": Rater((), NAMES)})
    return built


def test_the_whole_answer_is_worth_what_the_reward_says(policy: Policy, make: Any, ask: Request) -> None:
    """The last candidate of all, an end of text behind the answer, is what reward `bradley_terry` reads."""
    reward = BradleyTerry()
    reward.bind(policy, lambda request: Plan(()))
    text = "Tea is a leaf."
    plan = make("args").plan(ask, UserState(), policy.spec)
    answer = tuple(policy.encode_answer(text))
    readings = [Reading("q", replace(plan, streams=plan.streams[:1]), some) for some in (answer, answer[:-1])]
    readings += [Reading("q", plan, some) for some in (answer, answer[:-1])]
    base, base_before, whole, before = score_readings(policy, readings, "test")
    found = (whole - base) - (before - base_before)
    assert found == pytest.approx(reward.score(ask, UserState(), [text])[0].total, abs=1e-3)


def tokens(policy: Policy, plan: Plan) -> tuple[int, ...]:
    (made,) = Decoder(policy, 1).generate([Job("q", plan)])
    return made.tokens


def test_guidance_steers_and_opposite_users_get_opposite_values(policy: Policy, make: Any, ask: Request) -> None:
    part = make("vas", beta=3.0)
    made = []
    for state in (UserState(), stance(warmth=1.0), stance(warmth=-1.0)):
        plan = part.plan(ask, state, policy.spec)
        made.append(tokens(policy, replace(plan, sampling=replace(plan.sampling, max_new_tokens=8))))
    assert len(set(made)) == 3
    prompt = (Chat(ask.messages),)
    worth = Plan((Stream(prompt, 0.0), Stream(prompt, 1.0, (), Value("vas", (1.0, 0.0, 0.0)))), Candidates("top_k", 1))
    sums = score_readings(policy, [Reading("q", worth, answer) for answer in made], "test")
    base, more, less = (total / len(answer) for total, answer in zip(sums, made, strict=True))
    assert more > base > less


def test_vas_is_the_policys_own_answer_before_its_values_are_there(make: Any, ask: Request) -> None:
    plan = make("vas").plan(ask, stance(warmth=1.0), PolicySpec())
    assert [stream.valued for stream in plan.streams] == [False]
