"""Training on other data than what is answered: the same policy as that of a run on those data."""

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

SMALL = ["model=tiny", "precision=fp32", "sampling.max_new_tokens=6", "requests.limit=1", "requests.pairs=1"]
USERS = ["data.users=4", "data.pool=shipped"]
OTHERS = ["data@training_data=exact_users", "training_data.users=4", "training_data.pool=shipped"]
FEATURES = ["generation=pad", "memory=stance_stated", "alignment=pad", "alignment.pad.steps=2"]
TOLD = ["generation=preference_prompt", "memory=statement", "alignment=dpo", "alignment.dpo.steps=2"]


@pytest.fixture
def koala(tmp_path: Path) -> list[str]:
    """The eight users of the evaluation prompts, and three prompts."""
    file = tmp_path / "koala_eval_50.json"
    file.write_text(json.dumps([{"id": str(n), "prompt": f"Question {n}?"} for n in range(3)]))
    return ["data=psoups_eval", f"data.path={file}"]


def done(folder: Path, *words: str) -> dict[str, Any]:
    return Experiment(compose([*SMALL, *words, f"paths.runs={folder}", f"paths.cache={folder}/cache"])).run()


def tokens(folder: Path, record: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    rows = (folder / record["identity"] / "answers.jsonl").read_text().splitlines()
    return [(row["request"], tuple(row["tokens"])) for row in map(json.loads, rows)]


@pytest.mark.parametrize("method", [FEATURES, TOLD], ids=["features", "told"])
def test_it_is_the_policy_of_a_run_on_those_data(method: list[str], koala: list[str], tmp_path: Path) -> None:
    """Nothing is trained twice, and the answers are those of `evaluate`, also of a run that was evaluated already."""
    there = done(tmp_path, *USERS, *method)
    kept = sorted((tmp_path / "policies").rglob("adapter_model.safetensors"))
    here = done(tmp_path, *koala, *OTHERS, *method)
    evaluated = Experiment.from_run(tmp_path / there["identity"], koala).run()
    again = Experiment.from_run(tmp_path / evaluated["identity"], ["seed=0", "requests.limit=2"]).run()
    of_here = Experiment.from_run(tmp_path / here["identity"], ["requests.limit=2"]).run()
    assert there["training"] == here["training"] == evaluated["training"] == again["training"] == of_here["training"]
    assert kept == sorted((tmp_path / "policies").rglob("adapter_model.safetensors"))
    assert tokens(tmp_path, here) == tokens(tmp_path, evaluated)
    assert tokens(tmp_path, of_here) == tokens(tmp_path, again) and len(tokens(tmp_path, again)) == 16
    assert here["data_hash"] == evaluated["data_hash"] != there["data_hash"]
    assert len({one["identity"] for one in (there, here, evaluated, again, of_here)}) == 5


def test_they_name_a_run_that_learns_and_no_other() -> None:
    def name(*words: str) -> str:
        return identity(compose([*SMALL, *words]))

    assert name() == name(*OTHERS), "nothing is learned"
    assert len({name(*TOLD), name(*TOLD, *OTHERS), name(*TOLD, *OTHERS, "training_data.seed=7")}) == 3
    cfg = compose([*SMALL, *TOLD])
    before = OmegaConf.create(OmegaConf.to_container(cfg))
    del before["training_data"], before.choices["training_data"]
    assert identity(before) == name(*TOLD)
    assert identity(recompose(before, [])) == identity(recompose(cfg, []))


def test_their_files_count(koala: list[str], tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    words = [*TOLD, *koala, "data@training_data=alignx_psoups", f"training_data.path={shown}"]
    (shown / "rows.jsonl").write_text("{}\n")
    first = identity(compose(words))
    (shown / "rows.jsonl").write_text('{"changed": true}\n')
    assert identity(compose(words)) != first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (FEATURES, "alignment=pad needs pairs: use data=alignx_psoups|"),
        ([*TOLD, "data@training_data=psoups_eval"], "alignment=dpo needs pairs: use data@training_data=alignx_psoups|"),
        (
            [*FEATURES, "data@training_data=prefeval", "training_data.path=f"],
            "memory=stance_stated needs events.stance: use data@training_data=",
        ),
        (
            [*TOLD, *OTHERS, "training_data.user=3"],
            "training_data.user=3: no such key; did you mean training_data.users",
        ),
        (["training_data.users=3"], "no such key; data@training_data=exact_users"),
        (["data=none"], "data=none needs somebody who asks: use data=alignx_psoups|exact_users"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(words: list[str], said: str, koala: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        compose([*koala, *words])
    assert said in str(caught.value)


def test_what_they_lack_is_told_of_them_and_not_of_the_data_that_is_answered(koala: list[str], tmp_path: Path) -> None:
    """Personas without a declared stance cannot be learned from; the users who are answered have one."""
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "ground_truth_persona": "phd", "profile": "x"}
    rows = [{**row, "prompt": f"p {n}", "Pair-wise Comparative Feedback": []} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["data@training_data=alignx_psoups", f"training_data.path={tmp_path / 'rows.jsonl'}"]
    with pytest.raises(UserError, match=r"rows.jsonl lacks personas that declare their stance"):
        done(tmp_path, *koala, *words, *FEATURES)
