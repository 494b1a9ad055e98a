"""What choices show of a stance: simulated users whose weights are known, drift, and what keeps users apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalign.composition.compose import compose
from personalign.contracts import UserError
from personalign.data.exact_pool import SHIPPED, read_pool
from personalign.memory.stance_inferred import StanceInferred
from personalign.ratings.standard import Ratings
from personalign.types import Event, Message, Request, Stance, UserState

Make = Callable[..., StanceInferred]
DIMENSIONS = ["warmth", "grade", "formality"]
USERS, CHOICES, SCALE = 200, 200, 0.5
WARM, COLD = "I love it, what a wonderful and happy day for dear friends!", "I hate it, what a terrible and sad day."
TEXTS = (WARM, COLD, "Whereas the committee deliberates, the proposal remains under consideration.", "No.", "")


def choice(user: str, n: int, chosen: str, rejected: str, time: float | None = None) -> Event:
    payload = {"prompt": "?", "chosen": chosen, "rejected": rejected}
    return Event(id=str(n), user=user, time=float(n) if time is None else time, kind="choice", payload=payload)


def asked(user: str, time: float = math.inf) -> Request:
    return Request(id="q", user=user, time=time, messages=(Message("user", "?"),))


def shown(weights: np.ndarray) -> np.ndarray:
    return weights / max(1.0, np.abs(weights).max())


@pytest.fixture(scope="module")
def truths() -> np.ndarray:
    """The weights of simulated users, drawn from the prior."""
    return SCALE * np.random.default_rng(0).standard_normal((USERS, len(DIMENSIONS)))


@pytest.fixture(scope="module")
def simulated(truths: np.ndarray) -> Callable[[StanceInferred], StanceInferred]:
    """Lets a memory watch every user choose between shipped answers, by the model's own probabilities."""
    conf = compose([]).ratings
    rate = Ratings(dict(conf.center), dict(conf.scale), conf.clip)
    texts = [text for answers in list(read_pool(SHIPPED).answers.values())[:40] for text in answers]
    ratings = np.array([[rate(text)[d] for d in DIMENSIONS] for text in texts])
    draw = np.random.default_rng(1)

    def watch(memory: StanceInferred) -> StanceInferred:
        for u, w in enumerate(truths):
            for n in range(CHOICES):
                a, b = draw.integers(len(texts), size=2)
                if draw.random() > 1 / (1 + math.exp(-w @ (ratings[a] - ratings[b]))):
                    a, b = b, a
                memory.observe(choice(str(u), n, texts[a], texts[b]))
        return memory

    return watch


def test_stances_come_closer_and_intervals_cover_the_truth(
    infer: Make, simulated: Callable[[StanceInferred], StanceInferred], truths: np.ndarray
) -> None:
    """Truths drawn from the prior are within 95% of the posterior 95% of the time, whatever was compared, and their
    squared distance in posterior deviations is chi-squared: its mean is D, its variance 2 D. That is asked after
    many choices, where Laplace's approximation is exact to the first order.

    A user's intervals depend on one another, so that only users count as draws: the share's standard error is at
    most sqrt(.05 * .95 / users). Four of it, and of a mean, pass with odds of about 16000 to 1.
    """
    memory = simulated(infer(dimensions=DIMENSIONS, prior_scale=SCALE))
    found = [memory.posterior(asked(str(u))) for u in range(USERS)]
    covered = [np.abs(m - w) <= 1.96 * np.sqrt(np.diag(c)) for (m, c), w in zip(found, truths, strict=True)]
    assert np.mean(covered) == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / USERS))
    far = [(m - w) @ np.linalg.solve(c, m - w) for (m, c), w in zip(found, truths, strict=True)]
    size = len(DIMENSIONS)
    assert np.mean(far) == pytest.approx(size, abs=4 * math.sqrt(2 * size / USERS))
    errors = []
    for n in (10, 40, CHOICES):
        stances = [memory.recall(asked(str(u), float(n)), None).stance for u in range(USERS)]
        means = np.array([stance.mean for stance in stances if stance])
        errors.append(np.linalg.norm(means - np.array([shown(w) for w in truths]), axis=1))
    for few, many in ((0, 1), (1, 2)):
        gain = errors[few] - errors[many]
        assert gain.mean() > 4 * gain.std(ddof=1) / math.sqrt(USERS)


def test_the_stance_is_the_posterior_brought_into_range(infer: Make) -> None:
    bold, shy = infer(dimensions=DIMENSIONS, prior_scale=10.0), infer(dimensions=DIMENSIONS, prior_scale=0.1)
    for memory in (bold, shy):
        for n in range(6):
            memory.observe(choice("ada", n, WARM, COLD))
        mean, covariance = memory.posterior(asked("ada"))
        size = 1.0 if memory is shy else np.abs(mean).max()
        stance = memory.recall(asked("ada"), None).stance
        assert isinstance(stance, Stance) and stance.dimensions == tuple(DIMENSIONS)
        assert stance.mean == pytest.approx(tuple(mean / size))
        assert np.array(stance.covariance) == pytest.approx(covariance / size**2)
        assert (max(map(abs, stance.mean)) == 1.0) == (memory is bold)
        assert stance.mean[0] > 0.0


@pytest.mark.parametrize("half_life", [None, 3.0])
def test_recency_follows_a_user_who_changes_their_mind(infer: Make, half_life: float | None) -> None:
    """n times one way, then n times the other: w = x (new sigma(-w x) - old sigma(w x)), weights summed by age."""
    n = 8
    memory = infer(dimensions=["warmth"], half_life=half_life)
    for i in range(2 * n):
        memory.observe(choice("ada", i, *((WARM, COLD) if i < n else (COLD, WARM))))
    (mean,), _ = memory.posterior(asked("ada"))
    if half_life is None:
        assert mean == pytest.approx(0.0, abs=1e-12)
        return
    new = sum(0.5 ** (age / half_life) for age in range(n))
    old = sum(0.5 ** (age / half_life) for age in range(n, 2 * n))
    conf = compose([]).ratings
    rate = Ratings(dict(conf.center), dict(conf.scale), conf.clip)
    x = rate(COLD)["warmth"] - rate(WARM)["warmth"]
    assert mean == pytest.approx(x * (new / (1 + math.exp(mean * x)) - old / (1 + math.exp(-mean * x))))
    assert mean < -0.1


@given(st.permutations(range(6)), st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_choices_of_one_time_are_of_one_age_in_whatever_order_they_come(
    infer: Make, order: list[int], times: list[int]
) -> None:
    events = [choice("ada", n, TEXTS[n % 5], TEXTS[(n + 1) % 5], float(times[n])) for n in range(6)]
    one, other = infer(half_life=1.0), infer(half_life=1.0)
    for n in range(6):
        one.observe(events[n])
        other.observe(events[order[n]])
    assert one.posterior(asked("ada"))[0] == pytest.approx(other.posterior(asked("ada"))[0], abs=1e-9)


ACT = st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.sampled_from(TEXTS), st.sampled_from(TEXTS))


@settings(deadline=None)
@given(st.lists(ACT | st.sampled_from(["forget b", "recall"]), max_size=12), st.integers(0, 6))
def test_no_user_moves_another(infer: Make, acts: list[Any], now: int) -> None:
    """With any interleaving of another user's choices, recalls and forgetting, a user's state is that of one alone."""
    shared, alone = infer(half_life=2.0), infer(half_life=2.0)
    seen = {"a": 0, "b": 0}
    for act in acts:
        if act == "forget b":
            shared.forget("b")
        elif act == "recall":
            shared.recall(asked("a"), None)
            shared.recall(asked("b"), None)
        else:
            user, time, chosen, rejected = act
            seen[user] += 1  # so that both users have events of the same ids
            event = choice(user, seen[user], chosen, rejected, float(time))
            shared.observe(event)
            if user == "a":
                alone.observe(event)
    for request in (asked("a"), asked("a", float(now))):
        assert shared.recall(request, None) == alone.recall(request, None)
    shared.forget("b")
    assert shared.recall(asked("b"), None) == UserState()


def test_a_choice_over_nothing_is_refused(infer: Make) -> None:
    memory = infer()
    event = Event(id="a", user="ada", time=0.0, kind="choice", payload={"prompt": "?", "chosen": "x"})
    with pytest.raises(UserError, match="event 'a' of user 'ada' is a choice without rejected"):
        memory.observe(event)
    assert memory.recall(asked("ada"), None) == UserState()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "one or more dimensions"),
        (["warmth", "warmth"], "each once"),
        (["wit"], r"wit cannot be rated; there are length, grade"),
    ],
)
def test_wrong_dimensions_are_refused(infer: Make, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        infer(dimensions=names)


def test_one_scale_for_memory_and_reward() -> None:
    cfg = compose(["memory=stance_inferred", "reward@guide=exact", "ratings.clip=2", "ratings.center.warmth=0.5"])
    for node in (cfg.memory.stance_inferred, cfg.guide, cfg.truth):
        assert {key: node[key] for key in ("center", "scale", "clip")} == cfg.ratings
    assert (cfg.ratings.clip, cfg.ratings.center.warmth) == (2.0, 0.5)


def test_the_whole_way_with_pad(tmp_path: Path) -> None:
    """Inferred stances weigh PAD's features: every dimension's, for each user who has chosen."""
    from personalign import Experiment

    words = "memory=stance_inferred generation=pad alignment=pad model=tiny precision=fp32 data.pool=shipped debug=fast"
    record = Experiment(compose([*words.split(), f"paths.runs={tmp_path}"])).run()
    assert record["metrics"]["reward"]["n"] == 2
    assert record["training"]["pad"]
