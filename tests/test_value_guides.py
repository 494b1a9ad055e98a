"""Decoding that is guided by rewards and values, on the whole way: trained, answered, and without strength the base."""

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
HEADS = {
    "args": ("reward_head", ["generation.weight=0"]),
    "args_lore": ("lore", ["generation.weight=0"]),
    "vas": ("vas", ["generation.beta=0"]),
}
SHORT = {"vas": ["prompts=4", "samples=2", "max_answer=8"]}


def answers(folder: Path, record: dict[str, Any]) -> dict[tuple[str, str], str]:
    """{(prompt, user): answer}."""
    lines = (folder / record["identity"] / "answers.jsonl").read_text().splitlines()
    return {(row["prompt"], row["user"]): row["text"] for row in map(json.loads, lines)}


@pytest.mark.parametrize("name", HEADS)
def test_an_experiment_is_guided_and_without_strength_is_the_base(name: str, tmp_path: Path) -> None:
    stage, weak = HEADS[name]
    short = [f"alignment.{stage}.{one}" for one in ("steps=5", "learning_rate=0.5", *SHORT.get(name, []))]
    # An untrained model's likeliest tokens are as good as equal, so that any reward decides among them.
    record = Experiment(compose([*SMALL, *short, f"paths.runs={tmp_path}"], name)).run()
    assert record["metrics"]["reward"]["users"] == 4 and record["training"][stage]["steps"] == 5
    guided = answers(tmp_path, record)
    none = Experiment.from_run(tmp_path / record["identity"], weak).run()
    assert none["training"] == record["training"]
    plain = answers(tmp_path, none)
    assert guided.keys() == plain.keys() and guided != plain
    by_prompt: dict[str, set[str]] = {}
    for (prompt, _), text in plain.items():
        by_prompt.setdefault(prompt, set()).add(text)
    assert all(len(texts) == 1 for texts in by_prompt.values()), "nobody is known to the base"
    differ = any(guided[one] != guided[two] for one in guided for two in guided if one[0] == two[0])
    assert differ == (name != "args"), "one reward for all does not tell users apart"


def test_what_guides_has_to_be_trained() -> None:
    with pytest.raises(
        UserError, match=r"generation=args needs policy\.heads\.bradley_terry: add alignment=reward_head"
    ):
        compose(["generation=args"])
    with pytest.raises(UserError, match=r"generation=vas needs policy\.heads\.vas: add alignment=vas"):
        compose(["generation=vas", "memory=stance_stated"])
    with pytest.raises(UserError, match=r"generation=args_lore needs state\.vectors\.lore: add memory=lore_weights"):
        compose(["generation=args_lore", "alignment=lore"])
    with pytest.raises(UserError, match=r"alignment=vas needs reward\.guide"):
        compose(["alignment=vas", "reward@guide=none"])
