"""Who started this process, and whether it was started for this composition."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from personalign.contracts import UserError
from personalign.policy import reference
from personalign.runtime.ranks import Rank, check, leads, started

SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08],cpu1",
    "SLURM_JOB_ID": "1234567",
}
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*TORCHRUN, *SRUN):
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)
    started.cache_clear()
    yield
    started.cache_clear()


def begin(monkeypatch: pytest.MonkeyPatch, **told: str) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)


def test_a_process_by_itself() -> None:
    assert started() is None and leads()


def test_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    begin(monkeypatch, RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    assert started() == Rank(3, 4, 1, 2) and not leads()
    monkeypatch.delenv("WORLD_SIZE")  # as Lightning does
    assert started() == Rank(3, 4, 1, 2)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
@pytest.mark.parametrize("told", ["x", "", "-1"])
def test_what_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, name: str, told: str) -> None:
    begin(monkeypatch, **({"WORLD_SIZE": "2", "LOCAL_RANK": "0"} if name in TORCHRUN else {}))
    begin(monkeypatch, **{name: told})
    with pytest.raises(UserError, match=rf"^the environment variable {name} is '{told}', .*\(unset {name}\)$"):
        started()


def test_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    begin(monkeypatch, **SRUN)
    assert started() == Rank(5, 8, 1, 4)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu07", "19567")


@pytest.mark.parametrize(("nodes", "first"), [("node1", "node1"), ("a-b-01,c", "a-b-01"), ("n[3,7-9]", "n3")])
def test_the_first_machine_of_a_list(monkeypatch: pytest.MonkeyPatch, nodes: str, first: str) -> None:
    begin(monkeypatch, **{**SRUN, "SLURM_STEP_NODELIST": nodes})
    started()
    assert os.environ["MASTER_ADDR"] == first


def test_one_task_of_a_job_is_a_process_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    begin(monkeypatch, **{**SRUN, "SLURM_STEP_NUM_TASKS": "1"})
    assert started() is None


def test_processes_that_nobody_asked_for() -> None:
    check(None, 2, 1)
    check(Rank(0, 4, 0, 2), 2, 2)
    with pytest.raises(UserError, match=r"^4 processes were started, but devices=1 .*: set devices=4 and a trainer"):
        check(Rank(0, 4, 0, 4), 1, 1)
    with pytest.raises(UserError, match=r"start this command on every machine.*torchrun or srun"):
        check(None, 2, 2)


def test_every_rank_begins_with_a_share_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [[i] for i in range(7)]
    assert reference._dealt(batches) == batches
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    orders = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        orders.append(reference._dealt(batches))
    assert all(sorted(order) == batches for order in orders)
    assert orders[1][:2] == [[1], [4]] and orders[2][:2] == [[2], [5]]
    assert sorted(orders[0][:3] + orders[1][:2] + orders[2][:2]) == batches
