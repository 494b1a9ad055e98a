"""RLOO of two processes trains what one does, and waits for the one whose answers are long.

The tolerance is that of float32 sums in another order, 2e-4 on weights and 1e-3 on figures: answers are drawn from the
same random streams, and would differ only where a draw fell between two roundings of a probability.
"""

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

from personalign.alignment.rloo import RLOO
from personalign.contracts import Guide
from personalign.policy.policy import Policy
from personalign.runtime.fitting import Fitting
from personalign.types import Pair

RANK = """
import importlib.util, json, os, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
from personalign.alignment.rloo import RLOO
from personalign.runtime.fitting import Fitting
folder = Path(sys.argv[2])
cfg = {**shared.CPU, "devices": 2, "process_group_backend": "gloo", **json.loads(sys.argv[4])}
fitting = Fitting(trainer=cfg, folder=folder / "two", cache=Path(sys.argv[5]), logger=None, seed=0, micro_batch=1)
stage = RLOO(**json.loads(sys.argv[3]))
stage.bind(shared.a_guide(), lambda requests: [])
policy = shared.tiny_policy()
policy.stop_ids = tuple(json.loads(sys.argv[6])[int(os.environ["LOCAL_RANK"])])
print(json.dumps(dict(stage.fit(policy, shared.Given(shared.make_pairs(12)), shared.plain, fitting))))
base = {n.replace(".base.", "."): p for n, p in policy.model.named_parameters() if ".deltas." not in n}
assert all(base[n].equal(p) for n, p in shared.tiny_policy().model.named_parameters()), "the base is unharmed"
assert all(type(p).__name__ == "Parameter" and not hasattr(p, "ds_id") for p in policy.model.parameters())
"""
STRATEGIES = {
    "ddp": {"strategy": "ddp"},
    "zero2": {"strategy": "deepspeed", "zero_stage": 2, "offload": False},
    "zero3": {"strategy": "deepspeed", "zero_stage": 3, "offload": False},
}
OFTEN = list(range(2, 60, 5))
pytestmark = pytest.mark.slow


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def two(strategy: str, values: dict[str, Any], folder: Path, stops: list[list[int]]) -> list[dict[str, float]]:
    """The figures that each rank tells; `stops` are the ends of text of each."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "NODE_RANK": "0", "PERSONALIGN_QUIET": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    # The operator of DeepSpeed is built once for all tests, beside what else is cached.
    cache = os.environ.get("PERSONALIGN_CACHE", os.path.expanduser("~/.cache/personalign"))
    last = [json.dumps(values), json.dumps(STRATEGIES[strategy]), cache, json.dumps(stops)]
    command = [sys.executable, "-c", RANK, str(Path(__file__).with_name("conftest.py")), str(folder), *last]
    ranks = [
        subprocess.Popen(command, env={**shared, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    try:
        told = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [json.loads(text.splitlines()[-1]) for text in told]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_equal_one_process(
    strategy: str,
    policy: Policy,
    pairs: list[Pair],
    rloo_values: dict[str, Any],
    make_guide: Callable[..., Guide],
    given: Callable[..., Any],
    render: Any,
    make_fitting: Callable[..., Fitting],
    tmp_path: Path,
) -> None:
    values = {**rloo_values, "normalize": True, "max_answer": 20}
    stage = RLOO(**values)
    stage.bind(make_guide(), lambda requests: [])
    policy.stop_ids = tuple(OFTEN)
    expected = dict(stage.fit(policy, given(pairs), render, make_fitting("one")))
    assert 0.1 < expected["ended"] < 1.0 and expected["beta"] != values["beta"]
    for told in two(strategy, values, tmp_path, [OFTEN, OFTEN]):
        assert told == pytest.approx(expected, abs=1e-3)
    weights = [load_file(path) for n in ("one", "two") for path in (tmp_path / n).rglob("adapter_model.safetensors")]
    one, other = weights
    assert one.keys() == other.keys()
    assert all(float((one[name] - other[name]).abs().max()) < 2e-4 for name in one)
    assert max(float(one[name].abs().max()) for name in one if "lora_B" in name) > 0.01


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_whose_answers_end_at_once_waits_for_the_other(
    strategy: str, rloo_values: dict[str, Any], tmp_path: Path
) -> None:
    """One token against two hundred, in every step."""
    values = {**rloo_values, "steps": 3, "max_answer": 200}
    first, second = two(strategy, values, tmp_path, [list(range(259)), []])
    assert first == pytest.approx(second)
    assert first["tokens"] == pytest.approx((1 + 200) / 2) and first["ended"] == 0.5
