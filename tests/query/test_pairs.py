"""Which pair is asked: against determinants worked out one by one, and what each choice may not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalign.contracts import Query
from personalign.query.pairs import DOptimalPair, RandomPair, UncertainPair, gains

EVERY = [RandomPair(seed=0), UncertainPair(), DOptimalPair()]


def drawn(seed: int, n: int = 12, size: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differences, a mean and a covariance with correlations."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((size, size))
    return 2 * rng.standard_normal((n, size)), rng.standard_normal(size), root @ root.T / size + 0.1 * np.eye(size)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_d_optimal_has_the_largest_determinant_of_all(seed: int, size: int) -> None:
    """Each candidate's information is added to the precision itself."""
    differences, mean, covariance = drawn(seed, size=size)
    precision = np.linalg.inv(covariance)
    before = np.linalg.slogdet(precision)[1]
    after = []
    for x in differences:
        p = 1 / (1 + np.exp(-(mean @ x)))
        after.append(np.linalg.slogdet(precision + p * (1 - p) * np.outer(x, x))[1])
    assert gains(differences, mean, covariance) == pytest.approx(np.array(after) - before, abs=1e-7)
    assert DOptimalPair().choose("ada", 0, differences, mean, covariance) == int(np.argmax(after))


@pytest.mark.parametrize("seed", range(20))
def test_uncertainty_is_closest_to_one_half(seed: int) -> None:
    differences, mean, covariance = drawn(seed)
    open_ = [abs(1 / (1 + np.exp(-(mean @ x))) - 0.5) for x in differences]
    assert UncertainPair().choose("ada", 0, differences, mean, covariance) == int(np.argmin(open_))


def test_an_answer_that_is_foreseen_tells_nothing_however_far_out() -> None:
    far = np.array([[1e4, 0.0], [0.0, 1.0]])
    found = gains(far, np.array([1.0, 0.0]), np.eye(2))
    assert found.tolist() == [0.0, pytest.approx(np.log(1.25))]


def test_chance_is_even_over_rounds_and_users_and_tied_to_the_seed() -> None:
    """Of 8 pairs each is expected 1000 times in 8000 draws, with a standard deviation of 30."""
    differences, mean, covariance = drawn(0, n=8)
    asked = [(user, n) for user in ("ada", "bo") for n in range(4000)]
    one, again, other = (
        [RandomPair(seed=s).choose(user, n, differences, mean, covariance) for user, n in asked] for s in (0, 0, 1)
    )
    assert one == again != other
    assert one[:4000] != one[4000:]
    assert np.abs(np.bincount(one) - 1000).max() < 5 * 30


@pytest.mark.parametrize("query", EVERY, ids=lambda query: type(query).__name__)
def test_pairs_that_tell_nothing_are_asked_only_for_want_of_others(query: Query) -> None:
    differences, mean, covariance = drawn(3, n=6)
    differences[[0, 1, 2, 4, 5]] = 0.0
    assert {query.choose("ada", n, differences, mean, covariance) for n in range(20)} == {3}
    assert query.choose("ada", 0, np.zeros((1, 4)), mean, covariance) == 0


@pytest.mark.parametrize("query", EVERY, ids=lambda query: type(query).__name__)
def test_which_of_the_two_comes_first_changes_nothing(query: Query) -> None:
    differences, mean, covariance = drawn(5)
    assert len({query.choose("ada", 7, sign * differences, mean, covariance) for sign in (1, -1)}) == 1
