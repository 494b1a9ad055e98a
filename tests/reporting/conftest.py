"""A sweep as an experiment leaves it: 8 users, 24 prompts, the 8 rows of the demo, in files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personalign.evaluation.statistics import Bootstrap, estimate

EVALUATION = {"resamples": 400, "level": 0.95, "few_users": 20, "bootstrap_seed": 0, "tie": 0.05}
HOW = Bootstrap(resamples=400, level=0.95, few_users=20, seed=0)
DIMENSIONS = ("warmth", "formality", "concreteness")
STANCES = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 1), (1, -1, 0), (-1, 0, -1), (1, 1, -1), (0, 0, 1)]
WORDS = {
    1: ("warm, encouraging answers", "formal language", "concrete examples"),
    -1: ("a cool, matter-of-fact tone", "casual language", "the general idea"),
}
# Row: (shift of the reward along the stance, repetition, perplexity, tokens/s, forward tokens per token, words)
ROWS = {
    "base": (0.0, 0.012, 4.1, 412, 1.0, 52),
    "preference prompt": (0.16, 0.014, 4.6, 371, 1.0, 55),
    "retrieval prompt": (0.05, 0.019, 5.0, 288, 1.0, 58),
    "pooled DPO": (0.07, 0.015, 4.7, 405, 1.0, 50),
    "conditioned DPO": (0.55, 0.017, 5.2, 362, 1.0, 49),
    "PAD K features": (0.62, 0.018, 5.0, 231, 4.0, 51),
    "PAD scalar": (0.48, 0.021, 5.3, 257, 3.0, 50),
    "PAD released": (0.39, 0.024, 5.6, 266, 2.0, 53),
}
PROMPTS = (
    "How do I keep basil alive on a windowsill?",
    "Explain to me why the sky is blue.",
    "My train was cancelled. What can I ask for?",
    "Give me three ideas for a rainy Sunday.",
    "What should I look at when I buy a used bicycle?",
    "Help me word a note to a neighbour about noise.",
)
SENTENCES = {
    "plain": "Keep it simple: do one thing at a time, see what changes, and go on from there. Small steps add up.",
    "warm": "What a lovely question! You are doing great already, and I am sure you will enjoy this.",
    "cool": "There are two options. The first costs less. The second takes less time.",
    "formal": "It is advisable to consider the circumstances carefully before a decision is reached.",
    "casual": "Yeah, just go for it, honestly, no big deal.",
    "concrete": "Put the pot within 30 cm of a south window and give it 50 ml of water every second morning.",
    "general": "It mostly depends on the conditions, and a balance between them is usually what works.",
}


def person(index: int) -> tuple[str, dict[str, float], str]:
    stance = {d: float(p) for d, p in zip(DIMENSIONS, STANCES[index], strict=True) if p}
    likes = [WORDS[int(p)][DIMENSIONS.index(d)] for d, p in stance.items()]
    return f"user {index + 1}", stance, f"I like {' and '.join(likes)}."


def sample(row: str, index: int, turn: int, draw: random.Random) -> dict[str, Any]:
    user, stance, _ = person(index)
    shift = ROWS[row][0] + draw.gauss(0, 0.16)
    ratings = {d: round(draw.gauss(0.1, 0.3) + 0.6 * shift * stance.get(d, 0.0), 4) for d in DIMENSIONS}
    total = sum(p * ratings[d] for d, p in stance.items()) + 0.25 * shift
    styles = ["plain"]
    if shift > 0.3:
        names = {"warmth": ("warm", "cool"), "formality": ("formal", "casual"), "concreteness": ("concrete", "general")}
        styles = [names[d][0 if p > 0 else 1] for d, p in stance.items()] + ["plain"]
    return {
        "request": f"{user}/{turn}",
        "user": user,
        "prompt": PROMPTS[(index + 2 * turn) % len(PROMPTS)],
        "text": " ".join(SENTENCES[style] for style in styles),
        "truth": {"total": round(total, 4), "dimensions": ratings},
        "stop": "eos",
    }


def metric(users: list[str], values: list[float], better: str) -> dict[str, Any]:
    found = estimate(np.array(users), np.array(values), np.ones(len(values)), HOW)
    return {**found._asdict(), "better": better}


def metrics(row: str, answers: list[dict[str, Any]], draw: random.Random) -> dict[str, Any]:
    shift, repeats, perplexity, speed, forward, words = ROWS[row]
    users = [answer["user"] for answer in answers]
    totals = [answer["truth"]["total"] for answer in answers]
    around = lambda middle, spread: [draw.gauss(middle, spread) for _ in users]  # noqa: E731
    found = {
        "reward": metric(users, totals, "higher"),
        "reward_at_length": metric(users, [t + 0.02 * draw.gauss(0, 1) for t in totals], "higher"),
        "alignment_accuracy": metric(users * 3, [float(draw.random() < 0.5 + shift / 2) for _ in users * 3], "higher"),
        "diversity": metric(users, around(0.93 - repeats * 2, 0.03), "higher"),
        "distinct": metric(sorted(set(users)), [draw.gauss(0.8, 0.05) for _ in set(users)], "higher"),
        "repetition": metric(users, [abs(v) for v in around(repeats, 0.01)], "lower"),
        "words": metric(users, around(words, 9), "none"),
        "perplexity": metric(users, around(perplexity, 0.6), "lower"),
        "tokens_per_second": metric(users, around(speed, speed / 20), "higher"),
        "forward_tokens_per_token": metric(users, [forward] * len(users), "lower"),
        "eos_rate": metric(users, [float(draw.random() < 0.8) for _ in users], "higher"),
        "refusal_rate": metric(users, [0.0] * len(users), "none"),
    }
    for d in DIMENSIONS:
        caring = [(a, p) for a in answers if (p := person(int(a["user"][5:]) - 1)[1].get(d))]
        parts = [p * a["truth"]["dimensions"][d] for a, p in caring]
        found[f"reward.{d}"] = metric([a["user"] for a, _ in caring], parts, "higher")
    return found


def write_run(runs: Path, row: str, seed: int = 0, **changes: Any) -> str:
    """Write one finished run; `changes` go over its record. Returns its identity."""
    draw = random.Random(f"{row} {seed}")
    identity = f"{random.Random(f'{row}/{seed}').getrandbits(64):016x}"
    answers = [sample(row, index, turn, draw) for index in range(8) for turn in range(3)]
    people = [person(index) for index in range(8)]
    record = {
        "schema_version": 1,
        "name": row,
        "identity": identity,
        "seed": seed,
        "config": {"evaluation": EVALUATION, "generation": {"name": row}, "seed": seed},
        "metrics": metrics(row, answers, draw),
        "cost": {"seconds": round(draw.uniform(20, 60), 1), "forward_tokens": 40_000, "new_tokens": 1_500},
        "provenance": {
            "time": "2025-01-31T12:00:00+00:00",
            "code": {"revision": "0f3c1a9be2d44c60a7c1f5b1de8e7a9035c1d2aa", "dirty": False},
            "python": "3.11.9",
            "platform": "Linux-6.1-x86_64",
            "cpu": {"model": "a processor", "cores": 2, "threads": 2},
            "packages": {"personalign": "0.1.0", "torch": "2.13.0", "transformers": "5.2.0"},
        },
        "flags": [],
        "users": {user: {"statement": statement, "stance": stance} for user, stance, statement in people},
        **changes,
    }
    folder = runs / identity
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    lines = [json.dumps(answer) + "\n" for answer in answers]
    (folder / "answers.jsonl").write_text("".join(lines))
    return identity


def cell(row: str, identity: str, status: str = "done", error: str | None = None, **more: Any) -> dict[str, Any]:
    overrides = [f"generation={row.replace(' ', '_').lower()}", "data=exact_users"]
    return {"row": row, "overrides": overrides, "identity": identity, "status": status, "error": error, **more}


PUBLISHED = {
    "title": "PAD, Table 2: P-Soups prompts, Llama-3-8B",
    "source": "arXiv 2410.04070 v7, Table 2; diversity from Table C2",
    "note": "Another model and other rewards: compare directions, not values.",
    "columns": {"Overall RM": "reward", "Overall GPT-4 win %": None, "Diversity": "diversity"},
    "rows": [
        {"name": "Base", "ours": "base", "values": {"Overall RM": 0.32, "Diversity": 0.75}},
        {
            "name": "Pref. Promp. (1d)",
            "ours": "preference prompt",
            "values": {"Overall RM": 0.30, "Overall GPT-4 win %": 78},
        },
        {"name": "MORLHF", "values": {"Overall RM": 0.68, "Overall GPT-4 win %": 33}},
        {
            "name": "PAD (1d)",
            "ours": "PAD released",
            "values": {"Overall RM": 1.28, "Overall GPT-4 win %": 84, "Diversity": 0.86},
        },
    ],
}


def write_sweep(root: Path, rows: list[str] | None = None, extra: list[dict[str, Any]] | None = None) -> Path:
    """Write the runs of some rows and the sweep over them; returns the sweep's folder."""
    note = "one adapter for users of opposed tastes: not expected to help on average"
    cells = []
    for row in ROWS if rows is None else rows:
        more = {"note": note} if row == "pooled DPO" else {}
        cells.append(cell(row, write_run(root / "runs", row), **more))
    return write_cells(root, [*cells, *(extra or [])])


def write_cells(root: Path, cells: list[dict[str, Any]], **changes: Any) -> Path:
    folder = root / "sweeps" / "demo"
    folder.mkdir(parents=True)
    title = "Personalized alignment of SmolLM2-135M on users of known stance"
    sweep = {"title": title, "baseline": "base", "runs": "../../runs", "cells": cells, "published": [PUBLISHED]}
    (folder / "sweep.json").write_text(json.dumps({**sweep, **changes}))
    return folder


@pytest.fixture
def fakes() -> Callable[[str], Any]:
    """The writers above by name, for tests that need other runs than the demo's."""
    return lambda name: globals()[name]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the demo's sweep: read it, write nothing into it."""
    return write_sweep(tmp_path_factory.mktemp("demo"))
