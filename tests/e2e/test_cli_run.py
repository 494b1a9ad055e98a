"""`run`, `status` and `report` on a random model: what they leave behind and what they say."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

Command = Callable[..., Any]
Small = tuple[str, ...]


@pytest.fixture
def done(personalign: Command, small: Small) -> Path:
    """The folder of a finished run."""
    said = personalign("run", *small)
    assert said.code == 0, said.err
    (record,) = Path("runs").glob("*/record.json")
    return record.parent


def test_a_run_leaves_its_record_and_shows_its_figures(done: Path, personalign: Command, small: Small) -> None:
    record = json.loads((done / "record.json").read_text())
    assert json.loads((done / "status.json").read_text())["status"] == "done"
    assert record["metrics"]["reward"]["n"] == 6
    said = personalign("run", *small)
    assert f"{record['metrics']['reward']['value']:.2f}" in said.out
    assert str(done) in said.out


def test_a_finished_run_is_read_not_computed(done: Path, small: Small, without_torch: Command) -> None:
    before = (done / "record.json").read_bytes()
    said = without_torch("run", *small)
    assert (said.code, said.err) == (0, "")
    assert "this run is done" in said.out
    assert (done / "record.json").read_bytes() == before


def test_an_experiment_file_and_overrides_in_any_order(personalign: Command, small: Small) -> None:
    Path("mine.yaml").write_text("sampling:\n  max_new_tokens: 7\nseed: 3\n")
    words = [word for word in small if not word.startswith("sampling")]
    said = personalign("run", "seed=5", "mine.yaml", "--print-config", *words)
    printed = OmegaConf.create(said.out)
    assert (printed.sampling.max_new_tokens, printed.seed, printed.model.hidden) == (7, 5, 32)
    assert not Path("runs").exists()


def test_status_of_all_runs_and_of_one(done: Path, personalign: Command, without_torch: Command) -> None:
    said = without_torch("status")
    assert done.name in said.out and "1 done" in said.out
    (line,) = json.loads(personalign("status", done.name[:6], "--json").out)
    assert (line["run"], line["status"], line["answers"], line["error"]) == (done.name, "done", 6, None)


def test_damaged_files_are_told_and_the_other_runs_shown(done: Path, personalign: Command, small: Small) -> None:
    assert personalign("run", *small, "seed=1").code == 0
    damage = {"config.yaml": "", "record.json": "[]", "status.json": "{", "samples-0.jsonl": "{}\n"}
    for name, content in damage.items():
        before = (done / name).read_bytes()
        (done / name).write_text(content)
        said = personalign("status", "--json")
        lines = {line["run"]: line for line in json.loads(said.out)}
        assert len(lines) == 2 and lines.pop(done.name)["status"] == "unreadable"
        assert [line["status"] for line in lines.values()] == ["done"]
        assert "1 unreadable" in personalign("status").out
        assert personalign("report", "runs", "--format", "csv").code == 0
        (done / name).write_bytes(before)
    (done / "config.yaml").write_text("seed: 1\n")
    said = personalign("evaluate", done.name, "requests.limit=1")
    (line,) = said.err.splitlines()
    assert said.code == 2 and line.startswith(f"personalign: error: {done / 'config.yaml'} is damaged (")


def test_report_writes_what_is_asked_for(done: Path, personalign: Command) -> None:
    said = personalign("report", str(done), "--format", "csv")
    assert said.out.splitlines()[-1] == str(done / "report.csv")
    (row,) = csv.DictReader((done / "report.csv").open())
    record = json.loads((done / "record.json").read_text())
    assert float(row["reward"]) == record["metrics"]["reward"]["value"]
    assert not (done / "report.html").exists()
    assert personalign("report", str(done)).code == 0
    assert "<html" in (done / "report.html").read_text()


def test_a_failed_run_says_where_it_is_and_may_be_repeated(
    personalign: Command, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    import personalign.experiment as module

    def broken(*_: Any) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(module, "judge", broken)
        with pytest.raises(RuntimeError) as raised:
            personalign("run", *small)
    (folder,) = Path("runs").glob("*/")
    assert str(folder) in "".join(raised.value.__notes__)
    (line,) = json.loads(personalign("status", "--json").out)
    assert (line["status"], line["error"]) == ("failed", "RuntimeError: out of luck")
    assert personalign("run", *small).code == 0
    assert json.loads(personalign("status", "--json").out)[0]["status"] == "done"


def test_evaluate_makes_a_run_of_its_own_and_leaves_the_first(done: Path, personalign: Command) -> None:
    before = {path: path.read_bytes() for path in done.iterdir() if path.is_file()}
    said = personalign("evaluate", done.name[:8], "requests.limit=1")
    assert said.code == 0, said.err
    (other,) = (path for path in Path("runs").glob("*/record.json") if path.parent != done)
    assert json.loads(other.read_text())["metrics"]["reward"]["n"] == 2
    assert str(other.parent) in said.out
    assert {path: path.read_bytes() for path in before} == before
