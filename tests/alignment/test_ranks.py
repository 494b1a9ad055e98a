"""Two processes train what one does on the same global batches, each of K adapters clipped by itself."""

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
cfg = {**shared.CPU, "devices": 2, "process_group_backend": "gloo", **json.loads(sys.argv[4])}
fitting = Fitting(trainer=cfg, folder=folder / "two", cache=Path(sys.argv[5]), logger=None, seed=0, micro_batch=1)
stage = Pad(**json.loads(sys.argv[3]))
policy = shared.tiny_policy()
print(json.dumps(dict(stage.fit(policy, shared.Given(shared.make_pairs(12)), shared.plain, fitting))))
base = {n.replace(".base.", "."): p for n, p in policy.model.named_parameters() if ".deltas." not in n}
assert all(base[n].equal(p) for n, p in shared.tiny_policy().model.named_parameters()), "the base is unharmed"
assert all(type(p).__name__ == "Parameter" and not hasattr(p, "ds_id") for p in policy.model.parameters())
"""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        {"strategy": "ddp"},
        {"strategy": "deepspeed", "zero_stage": 2, "offload": False},
        {"strategy": "deepspeed", "zero_stage": 3, "offload": False},
    ],
    ids=["ddp", "zero2", "zero3"],
)
def test_two_ranks_equal_one_process(
    strategy: dict[str, Any],
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
    # The operator of DeepSpeed is built once for all tests, beside what else is cached.
    cache = os.environ.get("PERSONALIGN_CACHE", os.path.expanduser("~/.cache/personalign"))
    last = [json.dumps(pad_values), json.dumps(strategy), cache]
    ranks = [
        subprocess.Popen([*command, *last], env={**shared, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    told = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    for line in told:
        assert json.loads(line.splitlines()[-1]) == pytest.approx(dict(expected), abs=1e-4)
    weights = {name: list((tmp_path / name).rglob("adapter_model.safetensors")) for name in ("one", "two")}
    assert len(weights["one"]) == len(weights["two"]) == 2
    for one, two in zip(sorted(weights["one"]), sorted(weights["two"]), strict=True):
        ours, theirs = load_file(one), load_file(two)
        assert ours.keys() == theirs.keys()
        assert all(float((ours[name] - theirs[name]).abs().max()) < 2e-4 for name in ours)
