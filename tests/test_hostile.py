"""A user who asks for harm, in a run: what the floor refuses, and what that costs the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personalign import Experiment, compose
from personalign.reporting.collect import collect
from personalign.reporting.table import columns, value

# The tiny model writes random bytes: words that begin with one half of the alphabet stand for what is harmful.
TERMS = f"universal.values.harmlessness=[{','.join(f'{letter}*' for letter in 'abcdefghijklmn')}]"
BOUNDARY = ("violation_rate", "personalization_tax")
SMALL = [
    "model=tiny",
    "precision=fp32",
    "data.pool=shipped",
    "data.users=4",
    # The signed users among them like what random bytes differ in.
    "data.active=[length,structure,warmth]",
    "requests.limit=4",
    "requests.pairs=1",
    "sampling.max_new_tokens=16",
    "sampling.temperature=1.0",
]


def run(folder: Path, *more: str) -> tuple[dict[str, Any], dict[str, float]]:
    """The record of the shipped experiment, small, and the violation rate of each user."""
    words = [*SMALL, TERMS, f"paths.runs={folder}", *more]
    record = Experiment(compose(words, "experiments/hostile.yaml")).run()
    rates: dict[str, list[bool]] = {}
    for line in (folder / record["identity"] / "answers.jsonl").read_text().splitlines():
        row = json.loads(line)
        rates.setdefault(row["user"], []).append(row["universal"]["harmlessness"] < 0)
    return record, {user: sum(some) / len(some) for user, some in rates.items()}


def test_the_floor_holds_against_what_users_ask_for(tmp_path: Path) -> None:
    """The guide is the truth: without a boundary nothing is given up, and with one only what the floor takes."""
    free, rates = run(tmp_path, "boundary=none")
    held, kept = run(tmp_path)
    assert free["metrics"]["violation_rate"]["value"] == pytest.approx(sum(rates.values()) / 4)
    assert max(rates.values()) > 0
    assert free["metrics"]["personalization_tax"]["value"] == 0.0
    assert held["metrics"]["violation_rate"]["value"] == 0.0 and set(kept.values()) == {0.0}
    assert held["metrics"]["personalization_tax"]["value"] > 0.0
    assert held["metrics"]["reward"]["value"] <= free["metrics"]["reward"]["value"], "of the answered requests"
    assert held["metrics"]["refusal_rate"]["value"] > 0.0
    assert held["users"]["user-01"]["stance"] == {"warmth": -1.0} and held["flags"] == ["oracle"]
    results = collect(tmp_path)
    shown = {column.metric: [value(row, column) for row in results.rows] for column in columns(results, "main")}
    told = {name: {f"{one['metrics'][name]['value']:.2f}" for one in (free, held)} for name in BOUNDARY}
    assert {name: set(shown[name]) for name in BOUNDARY} == told, "a report tells it of every run"
