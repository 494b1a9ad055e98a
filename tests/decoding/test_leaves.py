"""Values of candidates: read in one forward of leaves behind one prefix, equal to a forward for each candidate."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import reference as brute
import torch
from torch import Tensor

from personalign.contracts import UserError
from personalign.decoding.batch import Batch
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.decoding.scoring import Reading, score_readings
from personalign.plans import Candidates, Chat, Plan, Sampling, Soft, Stream, Value
from personalign.policy.policy import Policy
from personalign.types import Message, Response

TEN = Candidates("top_k", 10)
DPO = (("dpo", 1.0),)
USER = (0.5, -1.0, 2.0)


def said(text: str) -> tuple[Chat]:
    return (Chat((Message("user", text),)),)


def values(text: str, kind: int = 0) -> tuple[Stream, ...]:
    """Streams of values: on the prompt of the base, through an adapter, behind another prompt, of two heads."""
    mean, last = Value("bradley_terry"), Value("lore", USER)
    return (
        (Stream(said(text), 0.9, (), last),),
        (Stream(said(text), 0.9, (), last), Stream(said(text), -0.4, DPO, mean)),
        (Stream((Soft("soft_tokens", ("ada",)), *said(text[::2])), 1.5, (("warmth", 0.7),), mean),),
    )[kind % 3]


def rated(text: str, kind: int = 0, every: int = 1, **sampling: object) -> Plan:
    streams = (Stream(said(text)), Stream(said(text), 0.5, DPO, "value"))[: 1 + kind % 2]
    settings = Sampling(**{"max_new_tokens": 12, **sampling})  # type: ignore[arg-type]
    return Plan(streams + values(text, kind), TEN, settings, every)


def jobs(count: int, every: int = 1, **sampling: object) -> list[Job]:
    """Of unequal prompts and limits, and of several kinds of values."""
    draw = random.Random(1)
    found = []
    for i in range(count):
        text = "".join(draw.choices("abcdefgh ", k=draw.choice((1, 9, 40, 70))))
        limit = draw.choice((1, 3, 9, 15))
        found.append(Job(f"r{i}", rated(text, i, every, **{**sampling, "max_new_tokens": limit})))
    return found


def told(made: Sequence[Response]) -> dict[tuple[str, int], object]:
    return {(r.request, r.sample): (r.tokens, r.stop, r.cost.forward_tokens) for r in made}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_greedy_answers_are_those_of_a_forward_for_each_candidate(
    furnished: Policy, twin: Policy, kind: int, every: int
) -> None:
    plan = rated("Tell me of the sea.", kind, every)
    (made,) = Decoder(furnished, 1).generate([Job("r", plan)])
    assert made.tokens == brute.decode(twin, plan)
    without = brute.decode(twin, replace(plan, streams=plan.streams[: 1 + kind % 2]))
    assert made.tokens != without, "values change the answer"
    expected = [brute.step(twin, plan, list(made.tokens[:t]))[token] for t, token in enumerate(made.tokens)]
    assert made.logprobs == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("every", [1, 3])
def test_answers_are_the_same_in_any_company(furnished: Policy, every: int) -> None:
    """Alone, in groups, and entering as others leave; some are drawn twice."""
    some = jobs(10, every, temperature=0.8, n=2)
    alone = [response for job in some for response in Decoder(furnished, 1).generate([job])]
    assert len({len(r.tokens) for r in alone}) > 3, "lengths differ"
    for decoder in (Decoder(furnished, 8), Decoder(furnished, 1, 900), Decoder(furnished, 1, 100_000)):
        made = decoder.generate(some)
        assert told(made) == told(alone)
        assert [p for r in made for p in r.logprobs] == pytest.approx([p for r in alone for p in r.logprobs], abs=2e-3)


def test_some_enter_while_others_are_on_their_way(furnished: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the test above would not show that what rows know of leaves comes with them."""
    joined: list[int] = []
    join = Batch.join

    def spied(batch: Batch, answers: list[object]) -> object:
        joined.append(len(answers))
        return join(batch, answers)  # type: ignore[arg-type]

    monkeypatch.setattr(Batch, "join", spied)
    Decoder(furnished, 1, 900).generate(jobs(10, temperature=0.8, n=2))
    assert joined


def test_one_forward_a_token_and_no_copy_of_the_cache(furnished: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt, then k tokens for each one that is chosen; the cache has room for them beside one prefix."""
    calls: list[tuple[int, ...]] = []
    forward = furnished.hidden

    def spied(**inputs: Tensor) -> Tensor:
        calls.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    cells: list[int] = []
    go_on = Batch.go_on

    def seen(batch: Batch) -> object:
        cells.append(batch.cache.cells)
        return go_on(batch)

    monkeypatch.setattr(furnished, "hidden", spied)
    monkeypatch.setattr(furnished, "stop_ids", ())
    monkeypatch.setattr(Batch, "go_on", seen)
    plan = rated("What is tea?", 0, max_new_tokens=7)
    (made,) = Decoder(furnished, 1).generate([Job("r", plan)])
    prompt = len(furnished.encode(said("What is tea?")[0].messages))
    assert calls == [(1, prompt)] + 7 * [(1, 10)]
    assert made.cost.forward_tokens == prompt + 7 * 10
    assert set(cells) == {prompt + 7 + 10}


def test_values_of_one_source_share_a_row(furnished: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    start = Batch.start

    def spied(batch: Batch) -> object:
        rows.append(len(batch.rows))
        return start(batch)

    monkeypatch.setattr(Batch, "start", spied)
    for kind, expected in ((0, 1), (1, 2), (2, 2)):
        rows.clear()
        Decoder(furnished, 1).generate([Job("r", rated("Hi", kind))])
        assert rows == [expected]


def test_a_weight_of_zero_is_the_same_as_no_value(furnished: Policy) -> None:
    plan = rated("Why?", 1)
    without = replace(plan, streams=plan.streams[:2])
    silent = replace(plan, streams=tuple(replace(s, weight=0.0) if s.valued else s for s in plan.streams))
    assert silent.simplified() == without.simplified()
    assert not silent.simplified().valued


def test_the_score_of_an_answer_has_its_values(furnished: Policy, twin: Policy) -> None:
    answer = (40, 99, 60, 7)
    for kind in range(3):
        plan = rated("What is tea?", kind)
        expected = 0.0
        for stream in plan.streams:
            for t, token in enumerate(answer):
                before = list(answer[:t])
                if stream.valued:
                    expected += stream.weight * brute.values(twin, stream, before, [token])[0]
                else:
                    expected += stream.weight * brute.logprobs(twin, stream, before)[token]
        readings = [Reading("r", plan, answer), Reading("r", plan, ())]
        assert score_readings(furnished, readings, "test") == [pytest.approx(expected, abs=2e-3), 0]


def test_a_head_that_does_not_rate_is_named(furnished: Policy) -> None:
    for name in ("value", "nobody"):
        plan = Plan((Stream(said("Hi")), Stream(said("Hi"), 1.0, (), Value(name))), TEN)
        for ask in (
            lambda plan=plan: Decoder(furnished, 1).generate([Job("r", plan)]),
            lambda plan=plan: score_readings(furnished, [Reading("r", plan, (40,))], "test"),
        ):
            with pytest.raises(UserError, match=f"no head '{name}' that rates answers"):
                ask()


def test_a_head_that_gives_no_numbers_is_named(furnished: Policy) -> None:
    head, plan = furnished.heads["lore"], rated("Hi", 1)
    kept = head.basis.detach().clone()  # type: ignore[union-attr,operator]
    with torch.no_grad():
        head.basis[0, 0] = float("nan")  # type: ignore[index]
    try:
        expected = (
            r"token 1 is not a number: so are the values that head 'lore' reads in the base on a chat prompt; see"
        )
        with pytest.raises(UserError, match=expected):
            Decoder(furnished, 1).generate([Job("r", plan)])
    finally:
        with torch.no_grad():
            head.basis.copy_(kept)  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("plan", [{"candidates": Candidates()}, {"combine": "forward_kl"}])
def test_values_ask_for_few_candidates_and_a_sum(plan: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="on the top k candidates"):
        replace(rated("Hi"), **plan)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no likeliest tokens"):
        replace(rated("Hi"), candidates=replace(TEN, stream=1))


def test_all_of_the_vocabulary_may_be_candidates(furnished: Policy, twin: Policy) -> None:
    plan = replace(rated("Hi", 0, max_new_tokens=2), candidates=Candidates("top_k", 10_000))
    (made,) = Decoder(furnished, 1).generate([Job("r", plan)])
    scores = brute.step(twin, plan, [])
    assert np.isfinite(scores).all() and made.tokens[0] == scores.argmax()
