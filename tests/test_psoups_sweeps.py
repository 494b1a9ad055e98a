"""The sweeps on real P-Soups prompts, some of their rows on a tiny model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from personalign import Experiment
from personalign.composition import home
from personalign.composition.sweeps import read
from personalign.data.psoups_eval import PSoupsEval

REAL = Path(os.environ.get("PERSONALIGN_DATA", ""))
needs_files = pytest.mark.skipif(
    "PERSONALIGN_DATA" not in os.environ or not (REAL / "alignx_psoups").is_dir(), reason="PERSONALIGN_DATA"
)
SMALL = [
    "model=tiny",
    "model.context=2048",
    "precision=fp32",
    "sampling.max_new_tokens=4",
    "requests.limit=1",
    "requests.pairs=1",
]


def ran(sweep: str, rows: list[str], folder: Path, *words: str) -> dict[str, dict[str, Any]]:
    """The records of some rows of a sweep, by row."""
    cells = {cell.row: cell for cell in read(sweep, [*SMALL, *words, f"paths.runs={folder}"]).cells}
    found = {}
    for row in rows:
        cfg = cells[row].cfg
        for stage in cfg.alignment.values():
            stage.steps, stage.pairs, stage.batch_size = 1, 4, 2
        found[row] = Experiment(cfg).run()
    return found


@needs_files
def test_psoups_is_answered_by_tuned_methods_that_learned_from_real_choices(tmp_path: Path) -> None:
    rows = ["base", "CoS", "DPO conditioned", "PAD, K features", "PAD, inferred stance"]
    words = ["tune.requests=1", "tune.perplexity=null", f"data.path={REAL / 'alignx_psoups'}"]
    records = ran("psoups", rows, tmp_path, *words)
    for row, record in records.items():
        assert record["metrics"]["reward"]["users"] == record["metrics"]["alignment_accuracy"]["users"] == 4, row
        assert bool(record.get("tuning")) == (row not in ("base", "DPO conditioned"))
    assert records["PAD, K features"]["tuning"]["by"] == "truth"
    assert len(records["CoS"]["tuning"]["tried"]) == 4


@pytest.fixture
def koala(tmp_path: Path) -> Path:
    """As many prompts as are asked, so that the real file is not needed."""
    file = tmp_path / "koala_eval_50.json"
    file.write_text(json.dumps([{"id": str(n), "prompt": f"Question {n}?"} for n in range(2)]))
    return file


def test_unseen_preferences_are_answered_by_what_learned_from_other_people(koala: Path, tmp_path: Path) -> None:
    rows = ["base", "preference prompt", "PAD, as released", "PAD, K features"]
    records = ran("pad_unseen", rows, tmp_path, f"data.path={koala}", "training_data.pool=shipped")
    assert all(record["metrics"]["reward"]["users"] == 8 for record in records.values())
    stances = {tuple(sorted(person["stance"])) for person in records["base"]["users"].values()}
    assert stances == {("concreteness", "grade", "length")}
    assert records["PAD, K features"]["training"] and not records["preference prompt"]["training"]


def test_the_published_rows_are_of_users_and_rows_that_there_are() -> None:
    sweep = yaml.safe_load(home.shelf("sweeps")["pad_unseen"].read_text())
    values = yaml.safe_load((home.home() / "conf" / "data" / "psoups_eval.yaml").read_text())
    del values["_target_"]
    users = set(PSoupsEval(**values).users())
    rows = sweep["published"][0]["rows"]
    assert {row["user"] for row in rows} == users and {row["ours"] for row in rows} < set(sweep["rows"])
    assert all(sum(row["values"].values()) == 50 for row in rows)
    assert all(row["name"].split(", ")[0].lower() == row["user"].replace("_", ",") for row in rows)
