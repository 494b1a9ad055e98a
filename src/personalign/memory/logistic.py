"""Bayesian logistic regression by Laplace's approximation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEPS = 100
# Of g^T H^-1 g, the squared distance to the mode in posterior standard deviations: after one more step it is nothing.
ENOUGH = 1e-14
# Of the loss: what rounding may add to it.
ROUNDING = 1e-14


def laplace(differences: Array, weights: Array, prior_scale: float) -> tuple[Array, Array]:
    """The posterior of w as a Gaussian: its mean [D] and covariance [D, D].

    Row i of `differences` [n, D] is x_i = r(chosen) - r(rejected), with P(chosen > rejected) = sigma(w^T x_i), and
    counts `weights`[i] times; the prior is N(0, prior_scale^2 I). The mean is the mode, the minimum of the strictly
    convex sum_i a_i log(1 + exp(-w^T x_i)) + |w|^2 / (2 prior_scale^2); the covariance is the inverse Hessian there
    (Bishop 2006, section 4.5). Newton's steps are halved until they go down, so that they converge from anywhere.

    The approximation is a little too sure of itself early on. Of truths drawn from N(0, I) in 3 dimensions, 93 to 94%
    were within the 95% intervals after 5 to 60 choices between shipped answers; from N(0, I / 4) after 240, 95%.
    """
    precision = prior_scale**-2.0 * np.eye(differences.shape[1])
    w = np.zeros(differences.shape[1])

    def loss(at: Array) -> float:
        return float(weights @ np.logaddexp(0.0, -differences @ at) + 0.5 * at @ precision @ at)

    for _ in range(STEPS):
        gradient = precision @ w - differences.T @ (weights * _wrong(differences, w))
        step = np.linalg.solve(_hessian(differences, weights, precision, w), gradient)
        decrement = float(gradient @ step)
        if decrement < ENOUGH:
            w = w - step
            break
        size = 1.0
        while loss(w - size * step) > (1.0 + ROUNDING) * loss(w) - 0.25 * size * decrement:
            size /= 2.0
        w = w - size * step
    return w, np.asarray(np.linalg.inv(_hessian(differences, weights, precision, w)), dtype=np.float64)


def _wrong(differences: Array, w: Array) -> Array:
    """sigma(-w^T x_i), the probability of what was not chosen, exact for very small ones too."""
    wrong: Array = np.exp(-np.logaddexp(0.0, differences @ w))
    return wrong


def _hessian(differences: Array, weights: Array, precision: Array, w: Array) -> Array:
    """sum_i a_i sigma(z_i) sigma(-z_i) x_i x_i^T + precision, with z_i = w^T x_i."""
    wrong = _wrong(differences, w)
    hessian: Array = (differences.T * (weights * wrong * (1.0 - wrong))) @ differences + precision
    return hessian
