"""Learning an unknown preference by asking: simulated users, rated answers, the posterior that memory works out.

Each user is asked about pairs of shipped answers, chosen from a handful that is offered in the round, as samples of
one prompt would be. The pairs are the same whoever chooses, and so is the answer to one of them: users are paired.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from personalign.composition.build import build
from personalign.composition.compose import compose
from personalign.contracts import Query
from personalign.data.exact_pool import SHIPPED, read_pool
from personalign.feedback.simulated import SimulatedUser
from personalign.memory.logistic import laplace
from personalign.query.pairs import DOptimalPair, RandomPair
from personalign.ratings.standard import Ratings
from personalign.types import Message, Request, Response, Score, Stance, UserState

DIMENSIONS = ("length", "grade", "warmth", "formality", "concreteness", "structure")
USERS, ROUNDS, OFFERED, PRIOR = 40, 60, 24, 1.0
REQUESTS = [Request(id="q", user=str(u), messages=(Message("user", "?"),)) for u in range(USERS)]


@cache
def pool() -> tuple[list[str], np.ndarray]:
    """Shipped answers and their ratings, one row each."""
    conf = compose([]).ratings
    rate = Ratings(dict(conf.center), dict(conf.scale), conf.clip)
    texts = sorted({text for answers in list(read_pool(SHIPPED).answers.values())[:24] for text in answers})
    return texts, np.array([[rate(text)[d] for d in DIMENSIONS] for text in texts])


class Looked:
    """The true reward of the pool's answers."""

    def score(self, request: Request, state: UserState, responses: list[str]) -> list[Score]:
        assert state.stance is not None
        rows = pool()[1][[pool()[0].index(text) for text in responses]]
        return [Score(float(row @ np.array(state.stance.mean))) for row in rows]


def people(drift: float = 0.0) -> SimulatedUser:
    """Users whose weights are drawn from the prior."""
    draws = PRIOR * np.random.default_rng(0).standard_normal((USERS, len(DIMENSIONS)))
    stances = {str(u): Stance(DIMENSIONS, tuple(w.tolist())) for u, w in enumerate(draws)}
    user = SimulatedUser(beta=1.0, noise=0.0, drift=drift, dimensions=[], start=0.0, seed=0)
    user.bind(SimpleNamespace(truth=lambda request: UserState(stance=stances[request.user])), Looked())  # type: ignore[arg-type]
    return user


def regrets(query: Query, drift: float = 0.0, half_life: float = np.inf) -> np.ndarray:
    """1 - cos(posterior mean, true w of the round) before each round's answer and after the last, [user, round]."""
    answering, (texts, ratings) = people(drift), pool()
    found = np.zeros((USERS, ROUNDS + 1))
    for u, request in enumerate(REQUESTS):
        offers = np.random.default_rng([1, u]).integers(len(texts), size=(ROUNDS, OFFERED, 2))
        seen = np.zeros((0, len(DIMENSIONS)))
        for n in range(ROUNDS + 1):
            ages = np.arange(len(seen))[::-1]
            mean, covariance = laplace(seen, 0.5 ** (ages / half_life), PRIOR)
            found[u, n] = 1.0 - cosine(mean, np.array(answering.stance(request, n).mean))
            if n < ROUNDS:
                first, second = offers[n].T
                row = query.choose(request.user, n, ratings[first] - ratings[second], mean, covariance)
                pair = [Response(request="q", text=texts[i], round=n) for i in offers[n][row]]
                payload = answering.events(request, pair)[0].payload
                chosen, rejected = (ratings[texts.index(payload[key])] for key in ("chosen", "rejected"))
                seen = np.vstack([seen, chosen - rejected])
    return found


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The 99% percentile interval of a mean over users, which are drawn again."""
    rows = np.random.default_rng(2).integers(len(differences), size=(4000, len(differences)))
    low, high = np.quantile(differences[rows].mean(axis=1), [0.005, 0.995])
    return float(low), float(high)


def needed(found: np.ndarray, regret: float) -> np.ndarray:
    """How many answers until the regret is first that low, for each user; one more than were asked if it never is."""
    low = np.hstack([found <= regret, np.ones((len(found), 1), dtype=bool)])
    return np.argmax(low, axis=1).astype(float)


@pytest.fixture(scope="module")
def still() -> dict[str, np.ndarray]:
    """The regrets of users who do not drift, by who chooses the questions."""
    return {"random": regrets(RandomPair(seed=0)), "d_optimal": regrets(DOptimalPair())}


def test_regret_falls_as_answers_come_in(still: dict[str, np.ndarray]) -> None:
    """Before the first answer nothing is known; every ten answers the mean over users is lower."""
    for found in still.values():
        curve = found.mean(axis=0)
        assert curve[0] == 1.0
        assert (np.diff(curve[::10]) < 0).all()
        assert interval(found[:, 10] - found[:, ROUNDS])[0] > 0


def test_d_optimal_needs_fewer_answers_than_chance(still: dict[str, np.ndarray]) -> None:
    for regret in (0.2, 0.1):
        saved = needed(still["random"], regret) - needed(still["d_optimal"], regret)
        assert interval(saved)[0] > 0
    assert interval(still["random"][:, 20] - still["d_optimal"][:, 20])[0] > 0


def test_a_half_life_follows_users_who_drift() -> None:
    """After 60 rounds of .04 radians the stance points elsewhere: a memory that forgets is closer to where."""
    kept, forgot = (regrets(DOptimalPair(), drift=0.04, half_life=h) for h in (np.inf, 12.0))
    assert interval(kept[:, ROUNDS] - forgot[:, ROUNDS])[0] > 0
    assert forgot[:, ROUNDS].mean() < 0.25


def test_this_posterior_is_what_memory_makes_of_the_events() -> None:
    """With a half-life, and ages counted in rounds."""
    values = [f"memory.stance_inferred.dimensions=[{','.join(DIMENSIONS)}]", "memory.stance_inferred.half_life=5"]
    memory = build(compose(["memory=stance_inferred", *values]).memory.stance_inferred)
    answering, (texts, ratings), seen = people(), pool(), []
    for n in range(12):
        pair = [Response(request="q", text=texts[i], round=n) for i in (n, n + 20)]
        (event,) = answering.events(REQUESTS[0], pair)
        memory.observe(event)
        chosen, rejected = (ratings[texts.index(event.payload[key])] for key in ("chosen", "rejected"))
        seen.append(chosen - rejected)
    expected = laplace(np.array(seen), 0.5 ** (np.arange(12)[::-1] / 5), PRIOR)
    for found, other in zip(memory.posterior(REQUESTS[0]), expected, strict=True):
        assert found == pytest.approx(other)
