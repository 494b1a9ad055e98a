"""What a run leaves in W&B's offline file and in the CSV file, read back."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import wandb
from pytorch_lightning.loggers import CSVLogger

from personalign import Experiment, compose
from personalign.contracts import UserError
from personalign.system import System

SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=4",
    "requests.limit=2",
    "requests.pairs=1",
    "data.users=4",
    "data.pool=shipped",
    "alignment=dpo",
    "alignment.dpo.steps=2",
]


def run(tmp_path: Path, logger: str, *more: str) -> tuple[dict[str, Any], Path]:
    record = Experiment(compose([*SMALL, f"paths.runs={tmp_path}", f"logger={logger}", *more])).run()
    return record, tmp_path / record["identity"]


BLOCK = 32768
HEADER = 7  # of the file (":W&B", magic, version) and of each piece (checksum, length, type)
FULL, FIRST, LAST = 1, 2, 4


def entries(path: Path) -> list[Any]:
    """The records of an offline run file: protocol buffers in LevelDB's log format, pieces within blocks."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    found, pieces, at = [], b"", HEADER
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        pieces = (b"" if kind in (FULL, FIRST) else pieces) + content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            found.append(wandb_internal_pb2.Record.FromString(pieces))
    return found


def test_the_offline_run_file_holds_config_curves_summary_answers_and_artifact(tmp_path: Path) -> None:
    record, folder = run(tmp_path, "wandb_offline")
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    found = entries(files[0])
    start = next(e.run for e in found if e.WhichOneof("record_type") == "run")
    assert start.run_group == "exact_users/tiny" and start.display_name == record["name"]
    assert {"generation=plain", "alignment=dpo"} <= set(start.tags)
    config = {item.key: json.loads(item.value_json) for item in start.config.update}
    assert config["seed"] == 0 and config["alignment"]["dpo"]["steps"] == 2
    history = {i.key or "/".join(i.nested_key) for e in found if e.HasField("history") for i in e.history.item}
    assert any(key.endswith("loss") for key in history)
    assert any(key.split("/")[0].split(".")[0] == "answers" for key in history), history
    summary = {
        i.key or "/".join(i.nested_key): json.loads(i.value_json)
        for e in found
        if e.HasField("summary")
        for i in e.summary.update
    }
    assert summary["reward"] == pytest.approx(record["metrics"]["reward"]["value"])
    assert summary["reward/low"] == pytest.approx(record["metrics"]["reward"]["low"])
    assert any(e.HasField("request") and e.request.HasField("log_artifact") for e in found) or any(
        e.HasField("artifact") for e in found
    )


def test_the_csv_file_holds_the_curve_and_the_figures(tmp_path: Path) -> None:
    _, folder = run(tmp_path, "csv")
    header, *rows = (folder / "csv" / "metrics.csv").read_text().splitlines()
    assert "reward" in header.split(",") and any("loss" in name for name in header.split(","))
    assert len(rows) >= 3


# Rounds after a training that logs its own steps.
LOOP = ["memory=stance_inferred", "feedback=simulated", "query=d_optimal", "rounds=2", "data.history=0"]


def curve(record: dict[str, Any]) -> list[dict[str, float]]:
    """What is to be found of each round: where it stands, and every figure with its ends."""
    found = []
    for point in record["rounds"]:
        figures = {name: figure["value"] for name, figure in point["metrics"].items()}
        for end in ("low", "high"):
            figures |= {f"{name}/{end}": figure[end] for name, figure in point["metrics"].items()}
        found.append({"round": point["round"], "events": point["events"], **figures})
    return found


def test_the_offline_run_file_holds_a_step_for_each_round(tmp_path: Path) -> None:
    record, folder = run(tmp_path, "wandb_offline", *LOOP)
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found = entries(file)
    steps = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in one.history.item}
        for one in found
        if one.HasField("history")
    ]
    rounds = [
        {k: v for k, v in step.items() if not k.startswith(("_", "trainer/"))} for step in steps if "round" in step
    ]
    assert rounds == curve(record) and [step["round"] for step in rounds] == [0, 1, 2]
    axes = {one.metric.name: one.metric.step_metric for one in found if one.HasField("metric")}
    assert {axes[name] for name in rounds[-1] if name != "round"} == {"round"}
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for one in found
        if one.HasField("summary")
        for item in one.summary.update
    }
    assert summary["regret"] == record["metrics"]["regret"]["value"]


def test_the_csv_file_holds_a_row_for_each_round(tmp_path: Path) -> None:
    record, folder = run(tmp_path, "csv", *LOOP)
    with open(folder / "csv" / "metrics.csv", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["round"]]
    assert [{k: float(v) for k, v in row.items() if v and k != "step"} for row in rows] == curve(record)
    assert [row["step"] for row in rows] == ["0", "1", "2"]


def test_the_logger_changes_no_identity(tmp_path: Path) -> None:
    identities = {Experiment(compose([*SMALL, f"logger={kind}"])).dir.identity for kind in ("none", "csv", "wandb")}
    assert len(identities) == 1


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is logged in to W&B, and there is no server."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.setenv(name, "")  # so that what W&B sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()


def test_without_a_key_w_and_b_is_refused_before_the_model_is_loaded(
    tmp_path: Path, nobody: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(System, "__init__", lambda self, cfg: pytest.fail("began to work"))
        told = r"^W&B begins no run \(.*\): log in \(`wandb login`.*WANDB_API_KEY.*logger=wandb_offline.*$"
        with pytest.raises(UserError, match=told):
            run(tmp_path, "wandb")
    assert wandb.run is None
    record, folder = run(tmp_path, "wandb_offline")
    assert record["metrics"] and list(folder.glob("wandb/offline-run-*"))


def test_a_name_that_w_and_b_would_refuse_is_no_legal_composition() -> None:
    for name in ("a/b", "", "x" * 129):
        with pytest.raises(UserError, match=r"^logger\.project=.*: must be 1 to 128 characters, none of them / "):
            compose([*SMALL, "logger=wandb_offline", f"logger.project='{name}'"])


def test_a_logger_that_fails_at_the_end_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no\nway")

    monkeypatch.setattr(CSVLogger, "save", broken)
    experiment = Experiment(compose([*SMALL[:-2], f"paths.runs={tmp_path}", "logger=csv"]))
    assert experiment.run()["metrics"] and experiment.dir.status() == "done"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    told = f"the logger did not take the result (RuntimeError: no way); {experiment.dir.path} has it"
    assert line == f"personalign: warning: {told}"


def test_a_run_that_fails_leaves_the_next_a_run_of_its_own_in_w_and_b(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: System) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(System, "prepare", broken)
        with pytest.raises(RuntimeError, match="out of luck"):
            run(tmp_path, "wandb_offline")
    assert wandb.run is None


def test_a_group_that_is_set_wins(tmp_path: Path) -> None:
    _, folder = run(tmp_path, "wandb_offline", "logger.group=demo")
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert next(e.run for e in entries(file) if e.WhichOneof("record_type") == "run").run_group == "demo"
