"""From combined scores to a token: greedy, temperature, top-k, top-p; one random stream per answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from personalign.plans import Candidates, Sampling


def allowed(scores: Tensor, rule: Candidates) -> Tensor:
    """Mask [rows, vocabulary] of the plausible tokens {t: p(t) >= fraction * max p} of the read stream's logits.

    The normaliser cancels, so logits serve (contrastive decoding, arXiv 2210.15097, eq. 2; CoPe).
    """
    floor = scores.max(dim=-1, keepdim=True).values + torch.log(torch.tensor(rule.fraction))
    return scores >= floor


def warp(scores: Tensor, sampling: Sampling) -> Tensor:
    """Scores / temperature with everything outside top-k and the top-p nucleus at -inf; [rows, candidates]."""
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        kth = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < kth, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = scores.sort(dim=-1, descending=True)
        mass = ordered.softmax(dim=-1).cumsum(dim=-1)
        outside = (mass - ordered.softmax(dim=-1)) >= sampling.top_p
        scores = scores.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
    return scores


def choose(scores: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """One candidate index per row. Each row draws one uniform number of its own, so that an answer does not
    depend on what else is in the batch."""
    if sampling.temperature == 0.0:
        return scores.argmax(dim=-1)
    mass = warp(scores, sampling).double().softmax(dim=-1).cumsum(dim=-1)
    draws = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]).to(mass.device)
    index = torch.searchsorted(mass, (draws * mass[:, -1])[:, None], right=True)[:, 0]
    return index.clamp(max=scores.shape[-1] - 1)
