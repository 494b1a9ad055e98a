"""Runs, sweeps and folders of runs as rows: what is found, averaged, compared and missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personalign.contracts import UserError
from personalign.reporting.collect import collect

Fakes = Callable[[str], Any]


def test_a_sweep_is_read_in_its_order(demo: Path, fakes: Fakes) -> None:
    results = collect(demo)
    assert [row.name for row in results.rows] == list(fakes("ROWS"))
    assert {len(row.runs[0].answers) for row in results.rows} == {24}
    assert (results.baseline, results.level, results.tie, results.missing) == ("base", 0.95, 0.05, ())
    assert collect(demo / "sweep.json") == results


def test_comparison_equals_a_count_over_the_answers(demo: Path) -> None:
    results = collect(demo)
    base, row = results.row("base"), results.row("PAD K features")
    assert base and row and row.against and base.against is None
    before = {a["request"]: a["truth"]["total"] for a in base.runs[0].answers}
    differences = {a["request"]: a["truth"]["total"] - before[a["request"]] for a in row.runs[0].answers}
    wins = sum(d > 0.05 for d in differences.values())
    losses = sum(d < -0.05 for d in differences.values())
    assert (row.against.win, row.against.tie, row.against.lose) == (wins, 24 - wins - losses, losses)
    # Three requests of each user: the mean over users is the mean over answers.
    assert row.metrics["reward_difference"].value == pytest.approx(sum(differences.values()) / 24)
    gap = row.metrics["reward"].value - base.metrics["reward"].value
    assert row.metrics["reward_difference"].value == pytest.approx(gap)
    assert "reward_difference" not in base.metrics


def test_one_run_and_another_baseline(demo: Path, fakes: Fakes) -> None:
    runs = demo.parents[1] / "runs"
    one = collect(next(runs.iterdir()))
    assert len(one.rows) == 1 and one.baseline is None and one.rows[0].against is None
    other = collect(demo, baseline="pooled DPO")
    assert {row.name for row in other.rows if row.against is None} == {"pooled DPO"}
    with pytest.raises(UserError, match=r"'pooled dpo' is no row of .*; did you mean 'pooled DPO'"):
        collect(demo, baseline="pooled dpo")
    assert {row.name for row in collect(demo.parents[1]).rows} == set(fakes("ROWS"))


def test_seeds_of_one_row_become_one(tmp_path: Path, fakes: Fakes) -> None:
    cell, write_run = fakes("cell"), fakes("write_run")
    cells = [cell(row, write_run(tmp_path / "runs", row, seed)) for row in ("base", "PAD scalar") for seed in (2, 0, 1)]
    results = collect(fakes("write_cells")(tmp_path, cells))
    base, row = results.rows
    assert row.seeds == [0, 1, 2]
    values = [run.record["metrics"]["reward"]["value"] for run in row.runs]
    assert row.metrics["reward"].value == pytest.approx(sum(values) / 3)
    assert (row.metrics["reward"].n, row.metrics["reward"].users) == (72, 8)
    assert row.against and row.against.win + row.against.tie + row.against.lose == 72
    before = {(run.seed, a["request"]): a["truth"]["total"] for run in base.runs for a in run.answers}
    wins = [a["truth"]["total"] - before[run.seed, a["request"]] > 0.05 for run in row.runs for a in run.answers]
    assert row.against.win == sum(wins)


def test_rows_without_a_common_seed_are_averaged_first(tmp_path: Path, fakes: Fakes) -> None:
    seeds = {"base": (0, 1), "PAD scalar": (2,)}
    cells = [
        fakes("cell")(row, fakes("write_run")(tmp_path / "runs", row, seed)) for row in seeds for seed in seeds[row]
    ]
    base, row = collect(fakes("write_cells")(tmp_path, cells)).rows
    assert row.against and row.against.win + row.against.tie + row.against.lose == 24
    means = sum(run.record["metrics"]["reward"]["value"] for run in base.runs) / 2
    assert row.metrics["reward_difference"].value == pytest.approx(row.metrics["reward"].value - means)


def test_a_folder_groups_seeds_and_tells_configs_of_one_name_apart(tmp_path: Path, fakes: Fakes) -> None:
    write_run = fakes("write_run")
    for seed in (0, 1):
        write_run(tmp_path, "base", seed)
    other = {"evaluation": fakes("EVALUATION"), "generation": {"name": "another"}, "seed": 2}
    identity = write_run(tmp_path, "base", 2, config=other)
    rows = collect(tmp_path).rows
    assert sorted(len(row.runs) for row in rows) == [1, 2]
    assert all(row.name.startswith("base (") for row in rows)
    assert f"base ({identity[:6]})" in {row.name for row in rows}


def test_what_is_not_finished_is_told(tmp_path: Path, fakes: Fakes) -> None:
    cell, runs = fakes("cell"), tmp_path / "runs"
    killed = runs / "aaaa"
    killed.mkdir(parents=True)
    (killed / "status.json").write_text(json.dumps({"status": "running", "error": None}))
    extra = [
        cell("failed", "bbbb", "failed", "RuntimeError: out of memory"),
        cell("killed", "aaaa", "running"),
        cell("waiting", "cccc", "pending"),
        cell("illegal", "", "left out", "memory none provides no state.stance"),
    ]
    results = collect(fakes("write_sweep")(tmp_path, ["base"], extra))
    assert [row.name for row in results.rows] == ["base"]
    assert [(one.row, one.status, one.error) for one in results.missing] == [
        ("failed", "failed", "RuntimeError: out of memory"),
        ("killed", "interrupted", None),
        ("waiting", "pending", None),
        ("illegal", "left out", "memory none provides no state.stance"),
    ]
    assert [one.status for one in collect(runs).missing] == ["interrupted"]


def test_without_its_baseline_a_sweep_compares_nothing(tmp_path: Path, fakes: Fakes) -> None:
    results = collect(fakes("write_sweep")(tmp_path, ["PAD scalar"], [fakes("cell")("base", "x", "pending")]))
    assert results.row("base") is None and results.rows[0].against is None


def test_a_record_without_its_answers_still_has_figures(tmp_path: Path, fakes: Fakes) -> None:
    folder = fakes("write_sweep")(tmp_path, ["base", "PAD scalar"])
    whole = collect(folder)
    for path in (tmp_path / "runs").glob("*/answers.jsonl"):
        path.unlink()
    bare = collect(folder)
    assert bare.rows[0].metrics == whole.rows[0].metrics
    assert whole.rows[1].against and bare.rows[1].against is None


def test_an_evaluation_that_states_no_intervals(tmp_path: Path, fakes: Fakes) -> None:
    for row in ("base", "PAD scalar"):
        fakes("write_run")(tmp_path, row, config={"generation": {"name": row}})
    results = collect(tmp_path, baseline="base")
    assert results.level is None and all(row.against is None for row in results.rows)
    fakes("write_run")(tmp_path, "base", 1, config={"generation": {"name": "base"}})
    with pytest.raises(UserError, match="the seeds of 'base' cannot be averaged"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("record.json", "{", "damaged"),
        ("record.json", '{"schema_version": 1}', "record.json: name: Field required"),
        ("record.json", '{"schema_version": 99}', "newer version"),
        ("answers.jsonl", '{"request": "r", "user": 3}\n', r"answers\.jsonl: user: "),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, fakes: Fakes, file: str, content: str, message: str) -> None:
    identity = fakes("write_run")(tmp_path, "base")
    (tmp_path / identity / file).write_text(content)
    with pytest.raises(UserError, match=message):
        collect(tmp_path)


def test_a_damaged_run_is_told_beside_the_others(tmp_path: Path, fakes: Fakes) -> None:
    folder = fakes("write_sweep")(tmp_path, ["base", "PAD scalar", "pooled DPO"])
    whole = {row.name: row.metrics["reward"] for row in collect(folder).rows}
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    broken = tmp_path / "runs" / cells[1]["identity"] / "record.json"
    broken.write_text("[]")
    del whole["PAD scalar"]
    for results in (collect(folder), collect(tmp_path / "runs")):
        assert {row.name: row.metrics["reward"] for row in results.rows} == whole
        (one,) = results.missing
        assert one.status == "unreadable" and f"{broken} is damaged" in str(one.error).replace("/sweeps/demo/../..", "")


@pytest.mark.parametrize("content", ["[]", '{"title": 3}', "\xff", "{"])
def test_a_damaged_sweep_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"sweep\.json"):
        collect(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run and no sweep"):
        collect(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        collect(tmp_path / "nowhere")
