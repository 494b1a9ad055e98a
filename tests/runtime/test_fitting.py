"""Who trains a stage that several runs share."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

CLAIM = """
import sys
from pathlib import Path
from personalign.runtime.fitting import Fitting
from personalign.runtime.ranks import join
join("gloo", 2)
two = {"devices": 2, "num_nodes": 1}
fitting = Fitting(trainer=two, folder=Path(sys.argv[1]), cache=Path(), logger=None, seed=0, micro_batch=1)
print("asks", flush=True)
with fitting.claim("stage"):
    print("has it", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_all_ranks_wait_for_another_run_that_trains_the_stage(tmp_path: Path) -> None:
    """While it is theirs nobody else has it, and it is free when they have ended."""
    lock = tmp_path / "checkpoints" / "stage" / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        ranks = two(tmp_path)
        said = [rank.stdout for rank in ranks if rank.stdout]
        assert [one.readline() for one in said] == [b"asks\n", b"asks\n"]
        assert select.select(said, [], [], 1.0)[0] == [], "neither goes on"
        fcntl.flock(stream, fcntl.LOCK_UN)
        assert [one.readline() for one in said] == [b"has it\n", b"has it\n"]
        with pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for rank in ranks:
            rank.communicate(timeout=60)
        assert [rank.returncode for rank in ranks] == [0, 0]
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def two(folder: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    pipe, command = subprocess.PIPE, [sys.executable, "-c", CLAIM, str(folder)]
    shared = {**os.environ, "PERSONALIGN_QUIET": "1", **shared}
    return [
        subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stdin=pipe, stdout=pipe, bufsize=0)
        for rank in "01"
    ]
