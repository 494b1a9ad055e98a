"""`Experiment.from_run`: a finished run's policy under other choices."""

from __future__ import annotations

from pathlib import Path

import pytest

from personalign import Experiment, compose
from personalign.contracts import UserError

SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=6",
    "requests.limit=2",
    "requests.pairs=1",
    "data.users=4",
    "data.pool=shipped",
    "alignment=dpo",
    "alignment.dpo.steps=2",
]


def test_the_policy_of_a_run_is_used_and_not_trained_again(tmp_path: Path) -> None:
    first = Experiment(compose([*SMALL, f"paths.runs={tmp_path}"])).run()
    policies = sorted((tmp_path / "policies").rglob("adapter_model.safetensors"))
    other = Experiment.from_run(tmp_path / first["identity"], ["data.seed=7", "sampling.max_new_tokens=4"])
    record = other.run()
    assert record["identity"] != first["identity"]
    assert record["training"] == first["training"]
    assert record["data_hash"] != first["data_hash"], "it answers other users"
    assert sorted((tmp_path / "policies").rglob("adapter_model.safetensors")) == policies
    assert record["config"]["sampling"]["max_new_tokens"] == 4


def test_another_choice_starts_from_its_own_file(tmp_path: Path) -> None:
    first = Experiment(compose([*SMALL[:-2], f"paths.runs={tmp_path}", "memory=bm25", "memory.bm25.k=1"])).run()
    cfg = Experiment.from_run(tmp_path / first["identity"], ["memory=recency"]).cfg
    assert list(cfg.memory) == ["recency"] and cfg.sampling.max_new_tokens == 6
    with pytest.raises(UserError, match="recencyy"):
        Experiment.from_run(tmp_path / first["identity"], ["memory=recencyy"])
