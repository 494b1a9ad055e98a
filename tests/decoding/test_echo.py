"""Plans with an echo: OPAD's own formula token by token, whoever is decoded beside, and what they think of a text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference as brute

from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.decoding.scoring import Reading, score_readings
from personalign.plans import Candidates, Chat, Plan, Sampling, Stream, Value
from personalign.policy.policy import Policy
from personalign.types import Message

PLAIN = (Chat((Message("user", "What is tea?"),)),)
WISH = (Chat((Message("user", "What is tea? Answer in verse."),)),)


def opad(a: float, new: int = 8, first: str = "What is tea?") -> Plan:
    prompts = [(Chat((Message("user", first + end),)),) for end in (" Answer in verse.", "")]
    streams = (Stream(prompts[0], 1 + a), Stream(prompts[1], -a))
    return Plan(streams, sampling=Sampling(max_new_tokens=new), echo=1.0)


def test_it_is_opads_formula_token_by_token(furnished: Policy, twin: Policy) -> None:
    """log p_c,t + a [(l_c,t - l_0,t) + (l_c,t-1 - l_0,t-1)], of which the first token has nothing from before."""
    a = 1.5
    (made,) = Decoder(furnished, 1).generate([Job("q", opad(a))])
    assert len(made.tokens) > 2
    before = np.zeros(furnished.model.config.vocab_size)
    for t, (token, logprob) in enumerate(zip(made.tokens, made.logprobs, strict=True)):
        prefix = list(made.tokens[:t])
        context, plain = (brute.logprobs(twin, Stream(prompt), prefix) for prompt in (WISH, PLAIN))
        score = brute.log_softmax(context + a * ((context - plain) + before))
        before = context - plain
        assert token == score.argmax() and logprob == pytest.approx(score[token], abs=2e-3)


def test_the_echo_matters_from_the_second_token_on(furnished: Policy) -> None:
    plans = [opad(2.0, 1), replace(opad(2.0, 1), echo=0.0), opad(2.0), replace(opad(2.0), echo=0.0)]
    one, same, long, without = Decoder(furnished, 4).generate([Job(f"q{i}", plan) for i, plan in enumerate(plans)])
    assert (one.tokens, one.logprobs) == (same.tokens, same.logprobs)
    assert long.tokens != without.tokens or long.logprobs != pytest.approx(without.logprobs, abs=1e-2)


@pytest.mark.parametrize("a", [0.0, -1.0])
def test_without_a_difference_nothing_is_carried_on(furnished: Policy, a: float) -> None:
    """Strength 0 is the preference prompt; one prompt for both streams is that prompt."""
    wish = Plan((Stream(WISH),), sampling=Sampling(max_new_tokens=8))
    plan = opad(a) if a == 0.0 else replace(wish, streams=(Stream(WISH, 3.0), Stream(WISH, -2.0)), echo=1.0)
    ours, alone = Decoder(furnished, 2).generate([Job("q", plan), Job("p", wish)])
    assert ours.tokens == alone.tokens and ours.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


@pytest.mark.parametrize("rule", [Candidates(), Candidates("top_k", k=5), Candidates("plausible", fraction=0.2)])
def test_company_changes_no_answer(furnished: Policy, twin: Policy, rule: Candidates) -> None:
    """Answers of many lengths, where one leaves others enter, each with what moved its own last token."""
    asked = ["What is tea?", "Why?", "How far is the moon from here, and from there?", "And?", "Hm.", "Name a river."]
    plans = [replace(opad(1.5, 3 + 2 * i, text), candidates=rule) for i, text in enumerate(asked)]
    jobs = [Job(text, plan) for text, plan in zip(asked, plans, strict=True)]
    each = [Decoder(furnished, 1).generate([job])[0] for job in jobs]
    for decoder in (Decoder(furnished, 3), Decoder(furnished, 6, token_budget=400)):
        for alone, beside in zip(each, decoder.generate(jobs), strict=True):
            assert alone.tokens == beside.tokens and alone.logprobs == pytest.approx(beside.logprobs, abs=1e-3)
    last = each[2]
    expected = brute.step(twin, jobs[2].plan, list(last.tokens[:-1]))[last.tokens[-1]]
    assert last.logprobs[-1] == pytest.approx(expected, abs=2e-3)


def test_a_text_is_scored_as_it_would_be_decoded(furnished: Policy, twin: Policy) -> None:
    plan, answer = opad(1.5), (40, 99, 60, 7)
    (found,) = score_readings(furnished, [Reading("q", plan, answer)], "test")
    expected = sum(brute.step(twin, plan, list(answer[:t]))[answer[t]] for t in range(len(answer)))
    assert found == pytest.approx(expected, abs=5e-3)
    assert score_readings(furnished, [Reading("q", plan, ())], "test") == [0.0]


def test_an_echo_is_for_log_linear_plans() -> None:
    with pytest.raises(ValueError, match="an echo is for log-linear plans without values"):
        replace(opad(1.0), combine="forward_kl")
    with pytest.raises(ValueError, match="an echo is for log-linear plans without values"):
        Plan((Stream(PLAIN), Stream(PLAIN, head=Value("lore"))), Candidates("top_k", 3), echo=1.0)
