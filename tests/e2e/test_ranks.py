"""Two processes through the real CLI: the same record as one process, and what happens when a rank dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=6",
    "requests.limit=3",
    "requests.pairs=2",
    "data.users=4",
    "data.pool=shipped",
    "decoding.batch_size=2",
    "alignment=dpo",
    "alignment.dpo.steps=3",
    "alignment.dpo.batch_size=4",
]


def personalign(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "personalign", "run", *SMALL, *words],
        env={**os.environ, "PERSONALIGN_QUIET": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def record(runs: Path) -> dict[str, Any]:
    (path,) = runs.glob("*/record.json")
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    one = personalign(f"paths.runs={tmp_path / 'one'}")
    two = personalign(f"paths.runs={tmp_path / 'two'}", "trainer=ddp_cpu", "devices=2")
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    a, b = record(tmp_path / "one"), record(tmp_path / "two")
    assert a["identity"] == b["identity"]
    assert a["training"]["dpo"]["loss"] == pytest.approx(b["training"]["dpo"]["loss"], rel=1e-4)
    for name, figure in a["metrics"].items():
        if name != "tokens_per_second":
            assert b["metrics"][name]["value"] == pytest.approx(figure["value"], rel=1e-4, abs=1e-4), name
    shares = [len(p.read_text().splitlines()) for p in sorted((tmp_path / "two").glob("*/samples-*.jsonl"))]
    assert len(shares) == 2 and all(shares), "both ranks answered"


def test_a_rank_that_dies_ends_the_run_with_a_plain_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import threading\n"
        "    threading.Timer(4.0, lambda: os._exit(9)).start()\n"
    )
    words = [f"paths.runs={tmp_path / 'runs'}", "trainer=ddp_cpu", "devices=2", "alignment.dpo.steps=2000"]
    died = personalign(*words, PYTHONPATH=str(tmp_path))
    assert died.returncode == 1 and "rank 1 ended with status 9" in died.stderr
    (status,) = (tmp_path / "runs").glob("*/status.json")
    assert json.loads(status.read_text())["status"] == "failed"
