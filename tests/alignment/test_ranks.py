"""Two processes train what one does on the same global batches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from personalign.alignment.pad import Pad
from personalign.policy.policy import Policy
from personalign.runtime.fitting import Fitting
from personalign.types import Pair

RANK = """
import importlib.util, json, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
from personalign.alignment.pad import Pad
from personalign.runtime.fitting import Fitting
folder = Path(sys.argv[2])
cfg = {**shared.CPU, "strategy": "ddp", "devices": 2, "process_group_backend": "gloo"}
fitting = Fitting(trainer=cfg, folder=folder / "two", cache=folder / "cache", logger=None, seed=0, micro_batch=1)
stage = Pad(**json.loads(sys.argv[3]))
print(json.dumps(dict(stage.fit(shared.tiny_policy(), shared.Given(shared.make_pairs(12)), shared.plain, fitting))))
"""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
def test_two_ranks_equal_one_process(
    policy: Policy,
    pairs: list[Pair],
    pad_values: dict[str, Any],
    given: Callable[..., Any],
    render: Any,
    make_fitting: Callable[..., Fitting],
    tmp_path: Path,
) -> None:
    expected = Pad(**pad_values).fit(policy, given(pairs), render, make_fitting("one"))
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, "-c", RANK, str(Path(__file__).with_name("conftest.py")), str(tmp_path)]
    ranks = [
        subprocess.Popen(
            [*command, json.dumps(pad_values)], env={**shared, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    told = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    for line in told:
        assert json.loads(line.splitlines()[-1]) == pytest.approx(dict(expected), abs=1e-4)
    weights = {name: list((tmp_path / name).rglob("adapter_model.safetensors")) for name in ("one", "two")}
    assert len(weights["one"]) == len(weights["two"]) == 2
    for one, two in zip(sorted(weights["one"]), sorted(weights["two"]), strict=True):
        ours, theirs = load_file(one), load_file(two)
        assert ours.keys() == theirs.keys()
        assert all(float((ours[name] - theirs[name]).abs().max()) < 2e-4 for name in ours)
