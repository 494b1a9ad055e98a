"""Any plan of sound parts is answered: nothing crashes, every answer ends, and its scores are numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import reference as brute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.plans import Candidates, Chat, Combine, Plan, Sampling, Soft, Stream, Tokens, Value
from personalign.policy.policy import Policy
from personalign.types import Message

PROMPTS = (
    (Chat((Message("user", "Hi"),)),),
    (Chat((Message("system", "Be kind, and do say so."), Message("user", "Hi"))),),
    (Soft("soft_tokens", ("ada",)), Chat((Message("user", "Hi"),))),
    (Tokens((40, 99, 60)),),
)
NAMES = ("dpo", "mine", "warmth")
WEIGHTS = st.sampled_from((0.0, 1.0, -1.0)) | st.floats(-3, 3)
STREAMS = st.builds(
    Stream,
    st.sampled_from(PROMPTS),
    WEIGHTS,
    st.lists(st.tuples(st.sampled_from(NAMES), st.floats(-1.5, 1.5)), max_size=2).map(tuple),
    st.sampled_from((None, None, "value")),
)
VALUES = st.builds(
    Stream,
    st.sampled_from(PROMPTS),
    WEIGHTS,
    st.sampled_from(((), (), (("dpo", 1.0),), (("warmth", 0.5),))),
    st.sampled_from((Value("bradley_terry"), Value("lore"), Value("lore", (0.5, -1.0, 2.0)))),
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.just(0.0) | st.floats(0.1, 3),
    top_k=st.integers(0, 4),
    top_p=st.floats(0.01, 1),
    max_new_tokens=st.integers(1, 4),
    n=st.integers(1, 2),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    streams = tuple(draw(st.lists(STREAMS, min_size=1, max_size=4)))
    read, every, sampling = draw(st.integers(0, len(streams) - 1)), draw(st.integers(1, 3)), draw(SAMPLINGS)
    if values := tuple(draw(st.lists(VALUES, max_size=3))):
        few = Candidates("top_k", draw(st.integers(1, 12)), stream=read)
        return Plan(streams + values, few, sampling, every)
    rule, k = draw(st.sampled_from(("all", "top_k", "plausible"))), draw(st.integers(1, 300))
    candidates = Candidates(rule, k, draw(st.floats(0, 1)), read)
    combine = draw(st.sampled_from(get_args(Combine)))
    echo = draw(st.sampled_from((0.0, 0.0, 1.0, -0.5))) if combine == "log_linear" else 0.0
    return Plan(streams, candidates, sampling, every, combine, echo)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(plans(), min_size=1, max_size=3), st.booleans())
def test_it_is_answered_as_the_formula_says(furnished: Policy, twin: Policy, some: list[Plan], alike: bool) -> None:
    if alike:  # of one kind, so that they share a batch
        some = [plan for plan in some if plan.valued == some[0].valued]
        kind = some[0]
        some = [
            replace(plan, candidates=replace(kind.candidates, stream=plan.candidates.stream), sampling=kind.sampling)
            for plan in some
        ]
        common = {"score_every": kind.score_every, "combine": kind.combine, "echo": kind.echo}
        some = [replace(plan, **common) for plan in some]  # type: ignore[arg-type]
    jobs = {f"r{i}": Job(f"r{i}", plan) for i, plan in enumerate(some)}
    made = Decoder(furnished, 6).generate(list(jobs.values()))
    assert len(made) == sum(plan.sampling.n for plan in some)
    for response in made:
        plan, tokens = jobs[response.request].plan, response.tokens
        assert 1 <= len(tokens) <= plan.sampling.max_new_tokens and all(map(math.isfinite, response.logprobs))
        assert (response.stop == "eos") == (tokens[-1] in furnished.stop_ids)
        assert response.stop == "eos" or len(tokens) == plan.sampling.max_new_tokens
        expected = brute.step(twin, plan, list(tokens[:-1]))[tokens[-1]]
        assert response.logprobs[-1] == pytest.approx(expected, abs=1e-2, rel=1e-3)
