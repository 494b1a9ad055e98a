"""How much likelier one text is than another behind some prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.policy import Policy

Ids = tuple[int, ...]


@torch.inference_mode()
def margins(policy: Policy, prompts: Sequence[Ids], chosen: Ids, rejected: Ids) -> list[float]:
    """log pi(chosen | prompt) - log pi(rejected | prompt) in nats behind each prompt, under the untouched model."""
    with policy.using(()):
        read = [answer_logprobs(policy, [Branches(prompt, (chosen, rejected))]) for prompt in prompts]
    return [float(one.double().sum() - other.double().sum()) for one, other in read]
