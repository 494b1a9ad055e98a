"""A further model as a guide, from the composition to the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from personalign import Experiment, compose
from personalign.composition.compose import recompose
from personalign.composition.identity import identity
from personalign.contracts import UserError

SMALL = [
    "model=tiny",
    "model.context=2048",
    "precision=fp32",
    "sampling.max_new_tokens=10",
    "requests.limit=1",
    "requests.pairs=1",
    "data.users=4",
    "data.pool=shipped",
    "memory=statement",
]
LEARNED = ["alignment=dpo", "alignment.dpo.steps=2", "generation=pad_scalar"]
GUIDE = ["model@guide_model=tiny", "guide_model.context=2048"]


def answers(folder: Path, *words: str) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...]]]]:
    record = Experiment(compose([*SMALL, *words, f"paths.runs={folder}", f"paths.cache={folder}/cache"])).run()
    rows = (folder / record["identity"] / "answers.jsonl").read_text().splitlines()
    return record, [(row["request"], tuple(row["tokens"])) for row in map(json.loads, rows)]


def test_a_guide_that_is_the_same_model_changes_nothing(tmp_path: Path) -> None:
    """Training goes to the further model, and what it thinks is what the base with the same adapter does."""
    one, own = answers(tmp_path, *LEARNED)
    other, guided = answers(tmp_path, *LEARNED, *GUIDE)
    assert one["identity"] != other["identity"]
    assert guided == own
    assert other["training"] == one["training"]
    reward = "alignment_accuracy"
    assert other["metrics"][reward]["value"] == pytest.approx(one["metrics"][reward]["value"])


def test_another_model_is_a_guide_as_it_is(tmp_path: Path) -> None:
    alone = answers(tmp_path, "generation=preference_prompt", "reward@guide=none")[1]
    released = ["generation=pad_released", "reward@guide=none", *GUIDE, "guide_model.seed=1"]
    assert answers(tmp_path, *released)[1] != alone
    assert answers(tmp_path, *released, "generation.beta=0")[1] == alone
    with pytest.raises(UserError, match="guide_model has learned nothing here"):
        answers(tmp_path, "generation=pad_scalar", "reward@guide=none", *GUIDE)


def test_a_further_model_needs_a_generation_that_lets_it_speak() -> None:
    with pytest.raises(
        UserError, match=r"model@guide_model=tiny needs plan.guide_model: use generation=dexperts\|drift"
    ):
        compose([*SMALL, "generation=preference_prompt", *GUIDE])
    with pytest.raises(UserError, match="model@guide_model=endpoint needs its weights here"):
        compose([*SMALL, "generation=pad_released", "model@guide_model=endpoint", "guide_model.model=m"])


PROXY = ["alignment=dpo", "alignment.dpo.steps=2", "generation=dexperts", "generation.strength=40"]


def test_a_proxy_that_is_the_same_model_changes_nothing_on_the_whole_vocabulary(tmp_path: Path) -> None:
    """The tiny model has 259 tokens."""
    alone = answers(tmp_path, *PROXY)[1]
    assert answers(tmp_path, *PROXY, *GUIDE, "generation.top_k=259")[1] == alone
    assert answers(tmp_path, "generation=plain", "reward@guide=none")[1] != alone
    with pytest.raises(UserError, match="expert and anti-expert are one"):
        answers(tmp_path, "generation=dexperts", "reward@guide=none", *GUIDE, "generation.top_k=3")


@pytest.mark.parametrize(
    "words",
    [
        ["memory=none", "alignment=dpo", "generation=dexperts"],
        ["memory=drift_weights", "generation=drift"],
        ["memory=stance_stated", "alignment=genarm", "generation=genarm"],
    ],
    ids=["dexperts", "drift", "genarm"],
)
def test_a_further_model_needs_candidates_before_anything_is_trained(words: list[str]) -> None:
    """They alone can be told in its tokens; without one the whole vocabulary is right."""
    small = [word for word in SMALL if not word.startswith("memory")]
    said = (
        "model@guide_model=tiny speaks only on the base's likeliest tokens, of which "
        f"{words[-1]} takes all: set generation.top_k to a number (10, say)"
    )
    with pytest.raises(UserError) as caught:
        compose([*small, *words, *GUIDE])
    assert str(caught.value) == said
    compose([*small, *words, *GUIDE, "generation.top_k=10"])
    compose([*small, *words])


def test_runs_of_before_are_named_and_read_as_they_were() -> None:
    cfg = compose(SMALL)
    before = OmegaConf.create(OmegaConf.to_container(cfg))
    del before["guide_model"], before.choices["guide_model"]
    assert identity(before) == identity(cfg)
    assert identity(recompose(before, [])) == identity(recompose(cfg, []))
