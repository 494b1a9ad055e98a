"""Several policies as one, when each is the optimum of its own reward under an f-divergence from one reference.

From p_j = argmax_p <p, R_j> - D_f(p, p_0) follows R_j = f'(p_j / p_0) + a constant. So the optimum of sum_j c_j R_j
is p = p_0 (f')^-1(sum_j c_j f'(p_j / p_0) - Z), with Z such that p sums to 1 (MOD, arXiv 2406.18853). With the reverse
Kullback-Leibler divergence that is log-linear, and needs no Z.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from personalign.plans import Combine

LARGEST = 300.0
"""Log-probabilities and log-ratios beyond it count as it: nobody notices so small a probability, and the square of
e^300 is still a number."""
TOLERANCE = 1e-12


def optimum(combine: Combine, reference: Tensor, logits: Tensor, owner: Tensor, weights: Tensor) -> Tensor:
    """log p [answers, candidates], float64, from logits of p_0 and of the p_j on the candidates.

    Args:
        combine: forward_kl, f(x) = -log x, or jensen_shannon, f(x) = x log x - (x + 1) log((x + 1) / 2).
        reference: logits of p_0 [answers, candidates]; -inf where a token is no candidate.
        logits: those of all p_j of all answers [rows, candidates].
        owner: the answer of each row [rows].
        weights: c_j of each row [rows], of either sign.
    """
    outside = reference.isneginf()
    base = reference.double().log_softmax(-1).clamp(min=-LARGEST).masked_fill(outside, -math.inf)
    own = logits.double().masked_fill(outside[owner], -math.inf).log_softmax(-1)
    ratio = (own - base[owner]).masked_fill(outside[owner], 0.0).clamp(-LARGEST, LARGEST)
    # f'(x) is -1 / x, or log(x / (1 + x)) and a constant: left to Z, for beside it small numbers would be lost.
    slope = -torch.exp(-ratio) if combine == "forward_kl" else F.logsigmoid(ratio)
    total = torch.zeros_like(base).index_add_(0, owner, weights.double()[:, None] * slope)
    total = total.masked_fill(outside, -math.inf)
    best = total.max(-1, keepdim=True)
    gap = best.values - total
    # With z > 0 for Z both are p = p_0 share / (pole + z), where a best token has share 1 and pole 0.
    if combine == "forward_kl":
        share, pole = torch.zeros_like(gap), gap
    else:
        share, pole = -gap, -torch.expm1(-gap)
    mass = (base + share).exp()
    return base + share - torch.log(pole + _root(mass, pole, mass.gather(-1, best.indices)))


def _root(mass: Tensor, pole: Tensor, start: Tensor) -> Tensor:
    """z [answers, 1] at which the sum of mass / (pole + z) is 1; `start` is a z at which it is 1 or more.

    Newton's steps on one over the sum, which is concave in z: they go up to the root and never beyond it.
    """
    z = start
    for _ in range(100):
        parts = mass / (pole + z)
        total = parts.sum(-1, keepdim=True)
        z = z + total * (total - 1.0) / (parts / (pole + z)).sum(-1, keepdim=True)
        if not bool(((total - 1.0).abs() > TOLERANCE).any()):
            break
    return z
