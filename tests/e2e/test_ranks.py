"""Several processes through the real CLI: the record of one process, and what happens where one lacks or dies.

Tolerances are those of float32 sums in another order: figures 1e-4, weights 1e-4.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=6",
    "requests.limit=3",
    "requests.pairs=2",
    "data.users=4",
    "data.pool=shipped",
    # Opposed users would cancel in a pooled gradient, and AdamW would make steps of the rounding that is left.
    "data.kind=dirichlet",
    "data.min_gap=0.5",
    "alignment.dpo.learning_rate=0.0005",
    "decoding.batch_size=2",
    "alignment=dpo",
    "alignment.dpo.steps=3",
    "alignment.dpo.batch_size=4",
]
ZERO2 = ("trainer=deepspeed_cpu", "devices=2")
ZERO3 = (*ZERO2, "trainer.zero_stage=3")
DDP = ("trainer=ddp_cpu", "devices=2")
LONGER = ("alignment.dpo.steps=60", "alignment.dpo.checkpoint_every=5")
# A rank that ends without a word as soon as there is a checkpoint.
DIES = """
import glob, os, sys, threading, time
def watch():
    while not glob.glob(os.environ["CHECKPOINT"]):
        time.sleep(0.01)
    os._exit(9)
if os.environ.get("RANK") == "1":
    threading.Thread(target=watch, daemon=True).start()
"""


def personalign(*words: str, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, "-m", "personalign", "run", *SMALL, *words],
        env={**os.environ, "PERSONALIGN_QUIET": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def record(runs: Path) -> dict[str, Any]:
    (path,) = runs.glob("*/record.json")
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def weights(runs: Path) -> dict[str, Any]:
    (path,) = runs.glob("policies/checkpoints/*/*/adapter_model.safetensors")
    return load_file(path)


def same(runs: Path, expected: Path) -> None:
    """Both hold the same result, within the tolerances above."""
    a, b = record(expected), record(runs)
    assert a["identity"] == b["identity"]
    assert b["training"]["dpo"] == pytest.approx(a["training"]["dpo"], rel=1e-4, abs=1e-4)
    for name, figure in a["metrics"].items():
        if name != "tokens_per_second":
            assert b["metrics"][name]["value"] == pytest.approx(figure["value"], rel=1e-4, abs=1e-4), name
    ours, theirs = weights(runs), weights(expected)
    assert ours.keys() == theirs.keys() and all(ours[k].shape == theirs[k].shape for k in ours)
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in ours) < 1e-4


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it."""
    runs = tmp_path_factory.mktemp("one")
    done = personalign(f"paths.runs={runs}")
    assert done.returncode == 0, done.stderr
    return runs


@pytest.mark.parametrize("trainer", [DDP, ZERO2, ZERO3], ids=["ddp", "zero2", "zero3"])
def test_two_processes_give_what_one_gives(trainer: tuple[str, ...], one: Path, tmp_path: Path) -> None:
    two = personalign(f"paths.runs={tmp_path}", *trainer)
    assert two.returncode == 0, two.stderr
    assert two.stderr == ""
    same(tmp_path, one)
    shares = [len(p.read_text().splitlines()) for p in sorted(tmp_path.glob("*/samples-*.jsonl"))]
    assert len(shares) == 2 and all(shares), "both ranks answered"


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [(*ZERO2, "trainer.zero_stage=1"), (*ZERO3, "trainer.offload=true")])
def test_stage_1_and_offload_too(trainer: tuple[str, ...], one: Path, tmp_path: Path) -> None:
    two = personalign(f"paths.runs={tmp_path}", *trainer)
    assert two.returncode == 0, two.stderr
    same(tmp_path, one)


def test_ranks_that_torchrun_started_do_their_part(one: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port)
    two = personalign(f"paths.runs={tmp_path}", *DDP, launcher=launcher)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("run directory:") == two.stdout.count("95% bootstrap") == 1, "rank 0 speaks for all"
    same(tmp_path, one)
    assert len(list(tmp_path.glob("*/samples-*.jsonl"))) == 2


def test_without_a_compiler_one_line_says_so_and_the_run_goes_on_later(one: Path, tmp_path: Path) -> None:
    words = (f"paths.runs={tmp_path / 'runs'}", *ZERO2)
    lacking = personalign(*words, PATH=str(tmp_path))
    assert lacking.returncode == 2
    (line,) = lacking.stderr.strip().splitlines()
    assert "no c++" in line and "install a C++ compiler" in line and "trainer=ddp_cpu" in line
    assert not (tmp_path / "runs" / "policies").exists()
    again = personalign(words[0])  # the same run, on what there is
    assert again.returncode == 0, again.stderr
    same(tmp_path / "runs", one)


def until_one_dies(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run with a rank 1 that ends as soon as there is a checkpoint."""
    (folder / "sitecustomize.py").write_text(DIES)
    checkpoint = str(folder / "runs" / "policies" / "checkpoints" / "*" / "last.ckpt")
    paths = os.pathsep.join(p for p in (str(folder), os.environ.get("PYTHONPATH")) if p)
    return personalign(f"paths.runs={folder / 'runs'}", *LONGER, *words, PYTHONPATH=paths, CHECKPOINT=checkpoint)


def test_a_rank_that_dies_ends_the_run_with_a_plain_reason(tmp_path: Path) -> None:
    died = until_one_dies(tmp_path, *ZERO2)
    assert died.returncode == 1 and "rank 1 ended with status 9" in died.stderr
    (status,) = (tmp_path / "runs").glob("*/status.json")
    assert json.loads(status.read_text())["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "later"), [(DDP, DDP), (ZERO2, ZERO2), (ZERO3, ())], ids=["ddp", "zero2", "zero3-then-one"]
)
def test_training_goes_on_from_the_checkpoint_of_a_run_that_died(
    trainer: tuple[str, ...], later: tuple[str, ...], tmp_path: Path
) -> None:
    whole = personalign(f"paths.runs={tmp_path / 'whole'}", *LONGER)
    assert whole.returncode == 0, whole.stderr
    assert until_one_dies(tmp_path, *trainer).returncode == 1
    assert list((tmp_path / "runs").glob("policies/checkpoints/*/last.ckpt"))
    again = personalign(f"paths.runs={tmp_path / 'runs'}", *LONGER, *later)
    assert again.returncode == 0, again.stderr
    same(tmp_path / "runs", tmp_path / "whole")
