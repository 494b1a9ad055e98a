"""Learning rates, and clipping that keeps groups apart."""

from __future__ import annotations

import pytest
import torch

from personalign.alignment.learner import Learner
from personalign.alignment.recipe import Recipe
from personalign.policy.policy import Policy


def recipe(**changes: object) -> Recipe:
    values = {
        "learning_rate": 0.1,
        "warmup": 0.2,
        "schedule": "linear",
        "steps": 10,
        "batch_size": 4,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "checkpoint_every": 5,
    }
    return Recipe(**{**values, **changes})  # type: ignore[arg-type]


def test_rates_rise_and_fall() -> None:
    linear = [recipe().rate(step) for step in range(10)]
    assert linear == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    cosine = [recipe(schedule="cosine", warmup=0.0).rate(step) for step in range(10)]
    assert cosine[0] == 1.0 and cosine[5] == pytest.approx(0.5) and cosine == sorted(cosine, reverse=True)
    assert {recipe(schedule="constant", warmup=0.0).rate(step) for step in range(10)} == {1.0}
    assert recipe(warmup=1.0).rate(9) == 1.0


def test_a_group_is_clipped_by_its_own_norm(tiny: Policy) -> None:
    small, large = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    small.grad, large.grad = torch.tensor([0.3, 0.4]), torch.tensor([30.0, 40.0])
    learner = Learner("t", tiny, [[small], [large]], lambda batch: (torch.zeros(()), {}), recipe())
    optimizer = learner.configure_optimizers()["optimizer"]
    learner.configure_gradient_clipping(optimizer, 1.0)
    torch.testing.assert_close(small.grad, torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(large.grad, torch.tensor([0.6, 0.8]))
    learner.configure_gradient_clipping(optimizer, None)
    torch.testing.assert_close(small.grad, torch.tensor([0.3, 0.4]))
