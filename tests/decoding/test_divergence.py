"""Several policies as one under an f-divergence: against the paper's formula, and against what it is the optimum of."""

from __future__ import annotations

import numpy as np
import pytest
import reference as brute
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personalign.decoding.decoder import Decoder
from personalign.decoding.divergence import optimum
from personalign.decoding.rows import Job
from personalign.decoding.scoring import Reading, score_readings
from personalign.plans import Candidates, Chat, Combine, Plan, Sampling, Stream
from personalign.policy.policy import Policy
from personalign.types import Message

DIVERGENCES: tuple[Combine, ...] = ("forward_kl", "jensen_shannon")
SEEDS = st.integers(0, 2**32 - 1)
KINDS = pytest.mark.parametrize("combine", DIVERGENCES)
Row = brute.Row


def table(seed: int, policies: int, spread: float) -> Row:
    """Logits [1 + policies, 40], the reference's first."""
    return np.random.default_rng(seed).normal(scale=spread, size=(1 + policies, 40))


def found(combine: Combine, logits: Row, weights: list[float]) -> Row:
    rows = torch.zeros(len(weights), dtype=torch.long)
    inputs = torch.tensor(logits)
    return optimum(combine, inputs[:1], inputs[1:], rows, torch.tensor(weights, dtype=inputs.dtype))[0].numpy()


def same(ours: Row, theirs: Row) -> None:
    """As probabilities, and as log-probabilities where rounding leaves enough of them."""
    likely = theirs > -15
    assert np.exp(ours) == pytest.approx(np.exp(theirs), abs=1e-11)
    assert ours[likely] == pytest.approx(theirs[likely], abs=1e-6)


@KINDS
@settings(deadline=None)
@given(SEEDS, st.lists(st.floats(-2, 2), max_size=4), st.floats(0.1, 30))
def test_it_is_the_papers_formula_with_its_normaliser(
    combine: Combine, seed: int, weights: list[float], spread: float
) -> None:
    logits = table(seed, len(weights), spread)
    ours = found(combine, logits, weights)
    own = [brute.log_softmax(row) for row in logits]
    theirs = brute.divergent(combine, own[0], list(zip(weights, own[1:], strict=True)))
    assert np.exp(ours).sum() == pytest.approx(1, abs=1e-9)
    same(ours, theirs)


def value(combine: Combine, p: Row, reward: Row, reference: Row) -> float:
    """<p, reward> - D_f(p, p_0)."""
    x = p / reference
    f = -np.log(x) if combine == "forward_kl" else x * np.log(x) - (x + 1) * np.log((x + 1) / 2)
    return float(p @ reward - reference @ f)


@KINDS
@pytest.mark.parametrize("seed", range(5))
def test_no_policy_has_a_better_weighted_sum_of_rewards(combine: Combine, seed: int) -> None:
    """Of the rewards that the two policies are the best for; also where one of them is to be made worse."""
    draw = np.random.default_rng(seed)
    p0, p1, p2 = np.exp([brute.log_softmax(row) for row in table(seed, 2, 1.0)])
    slope = {"forward_kl": lambda x: -1 / x, "jensen_shannon": lambda x: np.log(2 * x / (1 + x))}[combine]
    weights = [0.8, -0.3]
    logits = np.log([p0, p1, p2])
    for policy, reward in (
        (p1, slope(p1 / p0)),
        (np.exp(found(combine, logits, weights)), weights[0] * slope(p1 / p0) + weights[1] * slope(p2 / p0)),
    ):
        best = value(combine, policy, reward, p0)
        for size in (0.3, 0.03, 0.003):
            other = policy * np.exp(draw.normal(scale=size, size=(100, 40)))
            assert max(value(combine, row / row.sum(), reward, p0) for row in other) < best


@KINDS
@pytest.mark.parametrize("spread", [0.5, 5.0, 60.0])
def test_equal_policies_give_that_policy_and_so_does_a_single_one_of_weight_one(
    combine: Combine, spread: float
) -> None:
    logits = table(1, 3, spread)
    own = brute.log_softmax(logits[1])
    same(found(combine, logits[[0, 1, 1, 1]], [0.2, 0.3, 0.5]), own)
    same(found(combine, logits, [1.0, 0.0, 0.0]), own)
    same(found(combine, logits, [0.0, 0.0, 0.0]), brute.log_softmax(logits[0]))


@KINDS
def test_answers_are_told_apart_and_what_is_no_candidate_takes_no_part(combine: Combine) -> None:
    logits = torch.tensor(table(2, 3, 2.0)).float()
    both = torch.stack([logits[0], logits[0].masked_fill(torch.arange(40) >= 7, float("-inf"))])
    rows, weights = torch.tensor([1, 0, 1]), torch.tensor([0.5, 0.7, -0.4], dtype=torch.float64)
    joint = optimum(combine, both, logits[1:], rows, weights).numpy()
    whole = found(combine, logits[[0, 2]].double().numpy(), [0.7])
    part = found(combine, logits[[0, 1, 3]][:, :7].double().numpy(), [0.5, -0.4])
    assert joint[0] == pytest.approx(whole, abs=1e-6) and joint[1, :7] == pytest.approx(part, abs=1e-6)
    assert np.isneginf(joint[1, 7:]).all()


def test_a_score_that_is_no_number_stays_none() -> None:
    logits = table(3, 2, 1.0)
    logits[2, 5] = np.nan
    assert np.isnan(found("forward_kl", logits, [0.5, 0.5])).all()


# --- in the decoder --------------------------------------------------------------------------------


def chat(text: str) -> tuple[Chat]:
    return (Chat((Message("user", text),)),)


def plans(combine: Combine, rule: Candidates, **more: int) -> list[Plan]:
    """One with two guides, one with three of which one is the reference itself, one with none."""
    sampling = Sampling(max_new_tokens=8)
    guides = Stream(chat("Hi"), 0.7, (("warmth", 1.0),)), Stream(chat("Hi there"), 0.5, (("dpo", 1.0),))
    again = Stream(chat("Go"), 0.4), Stream(chat("Go"), -0.6, (("grade", 1.0),)), Stream(chat("Stop"), 0.8)
    some = (Stream(chat("Hi"), 0.0), *guides), (Stream(chat("Go"), 2.0), *again), (Stream(chat("Alone"), 0.0),)
    return [Plan(streams, rule, sampling, combine=combine, **more) for streams in some]


RULES = [Candidates(), Candidates("top_k", 7), Candidates("plausible", fraction=0.1)]


@KINDS
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_answers_equal_an_uncached_loop(furnished: Policy, twin: Policy, combine: Combine, rule: Candidates) -> None:
    some = plans(combine, rule, score_every=2)
    made = {r.request: r for r in Decoder(furnished, 8).generate([Job(f"r{i}", p) for i, p in enumerate(some)])}
    for i, plan in enumerate(some):
        tokens, told = made[f"r{i}"].tokens, made[f"r{i}"].logprobs
        assert tokens == brute.decode(twin, plan)
        steps = [brute.step(twin, plan, list(tokens[:t]))[token] for t, token in enumerate(tokens)]
        assert told == pytest.approx(steps, abs=1e-3)


@KINDS
def test_texts_are_scored_by_the_same_distribution(furnished: Policy, twin: Policy, combine: Combine) -> None:
    some = plans(combine, Candidates())
    linear = Plan(some[0].streams[1:])
    answer = (60, 61, 200)
    scores = score_readings(furnished, [Reading("r", plan, answer) for plan in (*some, linear)], "")
    for plan, score in zip(some, scores[:-1], strict=True):
        steps = [brute.step(twin, plan, list(answer[:t]))[token] for t, token in enumerate(answer)]
        assert score == pytest.approx(sum(steps), abs=1e-3)
    assert scores[-1] == score_readings(furnished, [Reading("r", linear, answer)], "")[0]
    assert score_readings(furnished, [Reading("r", some[0], ())], "") == [0.0]
