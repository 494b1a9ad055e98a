"""How likely a text is under context steering, at many lambdas."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from personalign.policy.logprobs import Branches, answer_logits
from personalign.policy.policy import Policy

Ids = tuple[int, ...]


@torch.inference_mode()
def steered_logprobs(
    policy: Policy, plain: Ids, contexts: Sequence[Ids], answer: Ids, points: Sequence[Sequence[float]]
) -> list[float]:
    """log p(answer | lambda) in nats at each point lambda [contexts], under the untouched base: each token's
    p ~ p(. | plain)^(1 - sum lambda_i) prod_i p(. | context_i)^lambda_i, over the whole vocabulary.

    The prompts are read once; what a point takes is a sum over the vocabulary.
    """
    with policy.using(()):
        none, *others = (answer_logits(policy, Branches(prompt, (answer,))) for prompt in (plain, *contexts))
    moved = [other - none for other in others]
    said = torch.tensor(answer, device=none.device)[:, None]
    found = []
    for point in points:
        scores = sum((weight * by for weight, by in zip(point, moved, strict=True)), none)
        found.append(float((scores.gather(1, said)[:, 0] - scores.logsumexp(-1)).double().sum()))
    return found
