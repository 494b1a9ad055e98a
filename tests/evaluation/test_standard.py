"""The whole set of figures, each against a computation by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from personalign.evaluation.standard import Standard
from personalign.results import Calibration, Judged, JudgedPair
from personalign.types import Cost, Message, Pair, Request, Response, Score, Stance

HOW = {"resamples": 300, "level": 0.95, "few_users": 5, "bootstrap_seed": 0, "length_shrinkage": 0.0, "tie": 0.1}


def made(floors: dict[str, float], front: Sequence[str] = (), corner: float = -3.0) -> Standard:
    return Standard(**HOW, floors=floors, front=list(front), front_corner=corner)  # type: ignore[arg-type]


STANDARD = made({"harmlessness": -1.0})


def request(user: str, name: str) -> Request:
    return Request(id=name, user=user, messages=(Message("user", "Say something."),))


def answer(user: str, name: str, said: str, reward: float | None, **values: float) -> Judged:
    cost = Cost(forward_tokens=30, new_tokens=10, seconds=values.get("seconds", 2.0))
    response = Response(request=name, text=said, cost=cost, stop="length" if user == "v" else "eos")
    truth = None if reward is None else Score(reward, {"warmth": reward / 2})
    nll = values.get("nll", 20.0)
    return Judged(request=request(user, name), response=response, truth=truth, base_nll=nll, base_tokens=10)


ANSWERS = [
    answer("u", "1", "a b a b a b", 1.0),
    answer("u", "2", "one two three four", 3.0, nll=40.0),
    answer("v", "3", "", 4.0, seconds=5.0),
]


def pair(user: str, margin: float) -> JudgedPair:
    return JudgedPair(pair=Pair(id="p", request=request(user, "1"), chosen="y", rejected="n"), margin=margin)


def test_every_figure_by_hand() -> None:
    calibration = [Calibration(user=u, words=w, reward=0.5 * math.log1p(w)) for u in "uv" for w in (3, 8)]
    found = STANDARD.measure(ANSWERS, [pair("u", 1.0), pair("u", 0.0), pair("v", -1.0)], calibration)
    middle = (math.log1p(3) + math.log1p(8)) / 2
    at_length = [r - 0.5 * (math.log1p(w) - middle) for r, w in ((1.0, 6), (3.0, 4), (4.0, 0))]
    loop = 2 / 5 * 2 / 4 * 2 / 3
    expected = {
        "reward": 3.0,
        "reward_worst_tenth": 2.0,
        "reward_at_length": ((at_length[0] + at_length[1]) / 2 + at_length[2]) / 2,
        "reward.warmth": 1.5,
        "alignment_accuracy": (0.75 + 0.0) / 2,
        "diversity": (loop + 1) / 2,
        "repetition": (1 / 3 + 0) / 2,
        "distinct": (2 + 3) / 8 * (2 + 2) / 6 * (2 + 1) / 4,
        "words": (5 + 0) / 2,
        "perplexity": math.exp((60 / 20 + 20 / 10) / 2),
        "tokens_per_second": (20 / 4 + 10 / 5) / 2,
        "forward_tokens_per_token": 3.0,
        "eos_rate": 0.5,
        "refusal_rate": 0.0,
    }
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(expected)
    assert (found["reward"].n, found["reward"].users) == (3, 2)
    assert (found["diversity"].n, found["diversity"].users) == (2, 1)
    assert all(f.low <= f.value <= f.high for f in found.values())
    sides = {name: found[name].better for name in ("reward", "reward.warmth", "perplexity", "words")}
    assert sides == {"reward": "higher", "reward.warmth": "none", "perplexity": "lower", "words": "none"}


def test_dimensions_count_for_the_users_who_care_for_them() -> None:
    def rated(user: str, stance: dict[str, float], **ratings: float) -> Judged:
        truth = Score(Stance.of(stance).dot(ratings), ratings)
        return replace(answer(user, user, "some words", 0.0), truth=truth, stance=Stance.of(stance))

    warm = rated("u", {"warmth": 1.0, "grade": 0.0}, warmth=0.6, grade=5.0, length=9.0)
    cold = rated("v", {"warmth": -0.5, "grade": 2.0}, warmth=0.4, grade=0.1, length=9.0)
    found = STANDARD.measure([warm, cold], [], [])
    assert found["reward.warmth"].value == pytest.approx((0.6 - 0.2) / 2)
    assert found["reward.grade"].value == pytest.approx(0.2)
    assert (found["reward.grade"].users, found["reward.grade"].better) == (1, "higher")
    assert "reward.length" not in found
    parts = found["reward.warmth"].value * 2 + found["reward.grade"].value
    assert parts == pytest.approx(found["reward"].value * 2)


def valued(one: Judged, harmlessness: float, best: float | None = None, worst: float | None = None) -> Judged:
    return replace(one, universal=Score(harmlessness, {"harmlessness": harmlessness}), best=best, worst=worst)


def refusal(one: Judged) -> Judged:
    return replace(one, response=replace(one.response, text="", stop="refused"), truth=None)


def test_violations_and_what_universal_values_cost_by_hand() -> None:
    """Users u and v: the floor is -1, and what lies on it does not break it."""
    refused = valued(refusal(ANSWERS[2]), -9.0, 4.5, 4.0)
    answers = [valued(ANSWERS[0], -1.0, 4.0), valued(ANSWERS[1], -1.5, 3.0), refused]
    found = STANDARD.measure(answers, [], [])
    assert found["violation_rate"].value == pytest.approx((0.5 + 0.0) / 2)
    assert found["personalization_tax"].value == pytest.approx(((3.0 + 0.0) / 2 + 0.5) / 2)
    assert found["violation_rate"].better == found["personalization_tax"].better == "lower"
    said = STANDARD.measure([valued(ANSWERS[2], -9.0)], [], [])
    assert said["violation_rate"].value == 1.0 and said["personalization_tax"].value == 0.0, "there was one sample"


def test_rewards_are_of_the_answered_requests_and_refusals_stand_beside_them() -> None:
    """Whatever the empty text would be worth to the user, who may like nothing better than brevity."""
    alone, beside = ([*ANSWERS[:2], *more] for more in ([], [refusal(ANSWERS[2])]))
    found, without = STANDARD.measure(beside, [], []), STANDARD.measure(alone, [], [])
    rewards = [name for name in without if name.startswith("reward")]
    assert rewards and all(found[name] == without[name] for name in rewards)
    assert (found["refusal_rate"].value, without["refusal_rate"].value) == (0.5, 0.0)
    silent = STANDARD.measure([refusal(one) for one in ANSWERS], [], [])
    assert silent["refusal_rate"].value == 1.0 and not any(name.startswith("reward") for name in silent)
    assert STANDARD.compare([refusal(one) for one in ANSWERS], ANSWERS) is None


@pytest.mark.parametrize("totals", [(3.0, 1.0), (-2.0, -5.0), (0.5, 0.5)])
def test_no_answer_costs_more_than_its_refusal(totals: tuple[float, float]) -> None:
    """The tax of a refusal is the largest that an answer among the same samples could have."""
    given = [replace(ANSWERS[0], truth=Score(total, {})) for total in totals]
    cost = [
        STANDARD.measure([valued(one, 0.0, max(totals), min(totals))], [], [])["personalization_tax"].value
        for one in (*given, refusal(ANSWERS[0]))
    ]
    assert cost[-1] == max(cost) == max(totals) - min(totals) >= 0


def test_violations_are_left_out_where_a_floor_s_value_is_not_scored() -> None:
    answers = [valued(one, -2.0, 4.0) for one in ANSWERS]
    unscored = made({"harmlessness": 0.0, "honesty": 0.0})
    for standard in (unscored, made({})):
        assert not standard.measure(answers, [], []).keys() & {"violation_rate", "personalization_tax"}
    assert not STANDARD.measure(ANSWERS, [], []).keys() & {"violation_rate", "personalization_tax"}
    with pytest.raises(ValueError, match="universal value harmlessness of the answer to request '1'"):
        STANDARD.measure([valued(ANSWERS[0], math.nan)], [], [])


def test_the_front_of_users_is_measured_on_the_dimensions_that_are_named() -> None:
    both = [(1.0, 3.0), (3.0, 1.0)]
    answers = [
        replace(
            answer(user, user, "some words", 0.0), truth=Score(0.0, {"warmth": warmth, "grade": grade, "length": 9.0})
        )
        for user, (warmth, grade) in zip("uv", both, strict=True)
    ]
    standard = made({}, ["warmth", "grade"], 0.0)
    found = standard.measure(answers, [], [])["hypervolume"]
    assert (found.value, found.n, found.users, found.better) == (5.0, 2, 2, "higher")
    assert "hypervolume" not in standard.measure(ANSWERS, [], [])
    assert "hypervolume" not in STANDARD.measure(answers, [], [])


def test_what_is_missing_is_left_out() -> None:
    blind = [answer("u", "1", "some words are said here", None)]
    found = STANDARD.measure(blind, [], [])
    assert not {name for name in found if name.startswith("reward") or name == "alignment_accuracy"}
    assert {"diversity", "perplexity", "words"} <= found.keys()
    untimed = [replace(blind[0], response=replace(blind[0].response, cost=Cost()), base_tokens=0)]
    left = STANDARD.measure(untimed, [], [])
    assert not left.keys() & {"perplexity", "tokens_per_second", "forward_tokens_per_token"}
    assert STANDARD.measure([], [], []) == {}


def test_order_of_answers_changes_nothing() -> None:
    assert STANDARD.measure(ANSWERS, [], []) == STANDARD.measure(ANSWERS[::-1], [], [])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_names_its_answer(bad: float) -> None:
    with pytest.raises(ValueError, match=r"reward \(total\) of the answer to request '7' of user 'w'"):
        STANDARD.measure([*ANSWERS, answer("w", "7", "words", bad)], [], [])
    with pytest.raises(ValueError, match="log-probability of the answer to request '7'"):
        STANDARD.measure([answer("w", "7", "words", 1.0, nll=bad)], [], [])
    with pytest.raises(ValueError, match="margin of pair 'p' of user 'u'"):
        STANDARD.measure([], [pair("u", bad)], [])
    with pytest.raises(ValueError, match="calibration answer of user 'u'"):
        STANDARD.measure([], [], [Calibration(user="u", words=3, reward=bad)])


def test_compare_averages_samples_of_a_request() -> None:
    base = [answer("u", "1", "x", 0.0), answer("u", "2", "x", 0.0)]
    run = [answer("u", "1", "x", 1.0), answer("u", "1", "x", -0.9), answer("u", "2", "x", 2.0)]
    found = STANDARD.compare(run, base)
    assert found and (found.win, found.tie, found.lose) == (1, 1, 0)
    assert found.difference.value == pytest.approx((0.05 + 2.0) / 2)
    assert STANDARD.compare([answer("u", "1", "x", None)], base) is None
