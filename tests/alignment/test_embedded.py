"""Training the embedded model in bf16: float32 masters on a frozen bf16 base."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from personalign.alignment.pad import Pad
from personalign.contracts import UserError
from personalign.policy import lora
from personalign.policy.loading import Pretrained
from personalign.policy.policy import Policy
from personalign.policy.reference import fingerprint
from personalign.types import Pair


@pytest.fixture
def embedded() -> Policy:
    cache = Path(os.environ.get("PERSONALIGN_CACHE", "~/.cache/personalign")).expanduser()
    try:
        return Pretrained(name="smollm2", revision=None).build(cache, "bf16")
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.model
def test_features_of_the_embedded_model_train_in_bf16(
    embedded: Policy,
    pairs: list[Pair],
    pad_values: dict[str, Any],
    given: Callable[..., Any],
    render: Any,
    make_fitting: Callable[..., Any],
) -> None:
    values = {**pad_values, "steps": 3, "batch_size": 2, "learning_rate": 0.002, "depth": 0.2, "warmup": 0.0}
    base = fingerprint(embedded, ())
    figures = Pad(**values).fit(embedded, given(pairs), render, make_fitting())
    (path,) = make_fitting().folder.rglob("curve.json")
    curve = json.loads(path.read_text())
    for dimension in ("warmth", "grade"):
        assert curve[f"{dimension}/loss"][0] == pytest.approx(0.693, abs=0.02)  # the rounding of bf16
        found = lora.parameters(embedded.model, f"feature-{dimension}")
        assert {p.dtype for p in found} == {torch.float32} and len(found) == 2 * 3 * 6
        assert all(float(p.detach().abs().max()) > 0 for p in found)
    assert fingerprint(embedded, ()) == base and embedded.dtype == torch.bfloat16
    assert figures["loss"] < 2 * 0.7
