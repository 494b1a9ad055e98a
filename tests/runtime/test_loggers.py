"""What a run leaves in W&B's offline file and in the CSV file, read back."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from personalign import Experiment, compose

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


def test_a_group_that_is_set_wins(tmp_path: Path) -> None:
    _, folder = run(tmp_path, "wandb_offline", "logger.group=demo")
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert next(e.run for e in entries(file) if e.WhichOneof("record_type") == "run").run_group == "demo"
