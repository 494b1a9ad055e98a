"""`sweep`: every cell once, failures kept apart, the second time nothing to do; Ctrl-C loses nothing."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Small = tuple[str, ...]
FOLDER = Path("runs/sweeps/grid")


@pytest.fixture
def grid(people: Path, small: Small) -> Path:
    """A sweep file of three rows, one of which has no data."""
    rows = {"base": [], "warmer": ["sampling.temperature=1.0"], "lost": ["data.path=nowhere"]}
    content = {"title": "Three rows", "base": list(small), "rows": rows, "baseline": "base"}
    (people / "grid.yaml").write_text(json.dumps(content))
    return people / "grid.yaml"


def standing() -> dict[str, str]:
    return {cell["row"]: cell["status"] for cell in json.loads((FOLDER / "sweep.json").read_text())["cells"]}


def records() -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in Path("runs").glob("*/record.json")}


def test_a_dry_run_says_what_would_be_done_and_does_nothing(grid: Path, without_torch: Command) -> None:
    said = without_torch("sweep", "grid.yaml", "--dry-run")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[0] == "Three rows: 3 cells, 0 done, 3 to compute"
    assert not Path("runs").exists()


def test_a_failed_cell_is_told_and_does_not_stop_the_rest(grid: Path, personalign: Command) -> None:
    said = personalign("sweep", "grid.yaml")
    assert said.code == 1
    assert standing() == {"base": "done", "warmer": "done", "lost": "failed"}
    (lost,) = (c for c in json.loads((FOLDER / "sweep.json").read_text())["cells"] if c["row"] == "lost")
    assert "nowhere: no such folder" in lost["error"]
    assert "[3/3] failed: nowhere: no such folder" in said.out
    assert "Traceback" not in said.err
    for name in ("report.html", "report.png", "report.csv"):
        assert str(FOLDER / name) in said.out
        assert (FOLDER / name).stat().st_size > 0


def test_a_bug_in_a_cell_keeps_its_traceback(grid: Path, personalign: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import personalign.experiment as module

    whole = module.judge

    def broken(system: Any, *rest: Any) -> Any:
        if system.cfg.sampling.temperature:
            raise RuntimeError("out of luck")
        return whole(system, *rest)

    monkeypatch.setattr(module, "judge", broken)
    said = personalign("sweep", "grid.yaml")
    assert said.code == 1
    assert standing() == {"base": "done", "warmer": "failed", "lost": "failed"}
    assert "RuntimeError: out of luck" in said.err and "Traceback" in said.err
    assert "the same command goes on from there" in said.err


def test_the_second_time_only_what_is_missing_is_computed(
    grid: Path, personalign: Command, without_torch: Command
) -> None:
    personalign("sweep", "grid.yaml")
    first = records()
    assert len(first) == 2
    content = json.loads(grid.read_text())
    del content["rows"]["lost"]
    grid.write_text(json.dumps(content))
    began = time.monotonic()
    said = without_torch("sweep", "grid.yaml")
    assert time.monotonic() - began < 10
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[0] == "Three rows: 2 cells, 2 done, 0 to compute"
    assert "report.html" in said.out
    assert records() == first


def test_overrides_reach_every_cell_and_illegal_cells_are_left_out(
    grid: Path, without_torch: Command, small: Small
) -> None:
    content = json.loads(grid.read_text())
    content["rows"] = {"base": [], "needy": ["generation=pad"]}
    grid.write_text(json.dumps(content))
    said = without_torch("sweep", "grid.yaml", "seed=7", "--dry-run")
    assert said.out.splitlines()[0] == "Three rows: 1 cells, 0 done, 1 to compute, 1 left out"
    assert "left out  needy: generation=pad needs state.stance" in said.out
    said = without_torch("validate", "grid.yaml")
    assert (said.code, said.out.splitlines()[-1]) == (0, "grid.yaml: 1 cells are legal, 1 left out")


def test_published_numbers_are_checked_before_anything_is_computed(grid: Path, without_torch: Command) -> None:
    content = json.loads(grid.read_text())
    content["published"] = [{"title": "Table 2", "source": "a paper", "columns": {}, "rows": [{"name": "x"}]}]
    grid.write_text(json.dumps(content))
    for command in ("sweep", "validate"):
        said = without_torch(command, "grid.yaml")
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith("personalign: error: grid.yaml: published.0.rows.0.values: ")
    content["published"][0]["rows"] = [{"name": "x", "ours": "bases", "values": {}}]
    grid.write_text(json.dumps(content))
    said = without_torch("validate", "grid.yaml")
    assert "grid.yaml: published: bases is no row; " in said.err


def test_sweeps_of_one_name_do_not_overwrite_one_another(grid: Path, personalign: Command) -> None:
    content = json.loads(grid.read_text())
    content["rows"] = {"base": []}
    grid.write_text(json.dumps(content))
    assert personalign("sweep", "grid.yaml").code == 0
    kept = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    other = grid.parent / "elsewhere" / "grid.yaml"
    other.parent.mkdir()
    other.write_text(grid.read_text())
    assert personalign("sweep", "elsewhere/grid.yaml", "--dry-run").code == 0, "a copy says the same"
    other.write_text(json.dumps({**content, "title": "Others"}))
    said = personalign("sweep", "elsewhere/grid.yaml")
    (line,) = said.err.splitlines()
    assert (said.code, said.out) == (2, "")
    assert f"{FOLDER} holds the results of grid.yaml, a sweep of the same name as elsewhere/grid.yaml: rename" in line
    assert {path.name: path.read_bytes() for path in FOLDER.iterdir()} == kept
    assert personalign("sweep", "elsewhere/grid.yaml", "paths.runs=others", "--dry-run").code == 0
    grid.unlink()
    assert personalign("sweep", "elsewhere/grid.yaml", "--dry-run").code == 0, "a file that was moved goes on"


def test_ctrl_c_leaves_a_run_that_goes_on(
    grid: Path, personalign: Command, start: Callable[..., Any], small: Small
) -> None:
    words = ["run", *small, "sampling.max_new_tokens=400", "decoding.batch_size=1"]
    process = start(*words)
    while process.poll() is None and not any(p.stat().st_size for p in Path("runs").glob("*/samples-0.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    (line,) = err.splitlines()
    assert line == f"personalign: interrupted; the same command goes on from here: personalign {' '.join(words)}"
    (kept,) = Path("runs").glob("*/samples-0.jsonl")
    before = kept.read_text().splitlines()
    assert 1 <= len(before) < 6
    assert json.loads(personalign("status", "--json").out)[0]["status"] == "interrupted"
    assert personalign(*words).code == 0
    assert kept.read_text().splitlines()[: len(before)] == before
    assert len(kept.read_text().splitlines()) == 6
