"""What the stance weighs, on the whole way: autoregressive reward models and steering vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personalign import Experiment, compose
from personalign.contracts import UserError

SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=8",
    "requests.limit=1",
    "requests.pairs=1",
    "data.users=4",
    "data.pool=shipped",
    "evaluation.resamples=20",
]
TRAINED = {"genarm": ["alignment.genarm.steps=2", "alignment.genarm.learning_rate=0.05"]}


def texts(folder: Path, record: dict[str, Any]) -> dict[str, dict[str, str]]:
    """{prompt: {user: answer}}."""
    found: dict[str, dict[str, str]] = {}
    for line in (folder / record["identity"] / "answers.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["prompt"], {})[row["user"]] = row["text"]
    return found


@pytest.mark.parametrize("name", ["genarm", "activation_difference"])
def test_an_experiment_answers_users_differently_and_without_strength_all_alike(name: str, tmp_path: Path) -> None:
    record = Experiment(compose([*SMALL, *TRAINED.get(name, []), f"paths.runs={tmp_path}"], name)).run()
    assert record["metrics"]["reward"]["users"] == 4 and record["training"][name]
    for answers in texts(tmp_path, record).values():
        assert len(set(answers.values())) > 1
    weak = Experiment.from_run(tmp_path / record["identity"], ["generation.strength=0"]).run()
    assert weak["training"] == record["training"]
    for answers in texts(tmp_path, weak).values():
        assert len(set(answers.values())) == 1


def test_what_they_are_made_of_has_to_be_trained() -> None:
    with pytest.raises(UserError, match=r"generation=steering needs policy\.vectors: add alignment=acti.*bipo"):
        compose(["generation=steering", "memory=stance_stated"])
    with pytest.raises(UserError, match=r"generation=genarm needs policy\.features: add alignment=.*genarm.*parm"):
        compose(["generation=genarm", "memory=stance_stated"])
