"""Several processes for one run: started on a run directory that is already there, watched, and ended together.

The parent composes once and writes the resolved configuration; the ranks only read it. Nothing is relaunched by
Lightning, so there is one run directory and the command line is read once.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from personalign.contracts import UserError

# What a rank exits with when the user can put right what stopped it; it has said so itself.
USER_ERROR = 2
# Seconds that the others have to end by themselves when one has failed.
GRACE = 5.0
CHECK = 0.05


def run_ranks(module: str, folder: Path, processes: int) -> None:
    """Run `python -m module folder` as so many ranks on this machine, to their end.

    When one fails the others are ended. Raises UserError where a rank met one (its lines are in the run's rank
    logs), RuntimeError with the end of a rank's log where it broke, and passes Ctrl-C on to all.
    """
    environment = {**os.environ, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    environment |= {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    logs = [folder / f"rank-{rank}.log" for rank in range(processes)]
    ranks = [_start(module, folder, environment, rank, log) for rank, log in enumerate(logs)]
    try:
        failed = _watch(ranks)
    finally:
        _end(ranks)
    if failed is not None:
        raise _told(failed, ranks[failed].returncode, logs[failed])


def _start(module: str, folder: Path, environment: dict[str, str], rank: int, log: Path) -> subprocess.Popen[bytes]:
    mine = {**environment, "LOCAL_RANK": str(rank), "RANK": str(rank)}
    with log.open("wb") as stream:
        # Rank 0 speaks for all on the terminal; a rank's own group keeps Ctrl-C for the parent to pass on.
        errors = None if rank == 0 else stream
        return subprocess.Popen([sys.executable, "-m", module, str(folder)], env=mine, stdout=stream, stderr=errors)


def _watch(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; the number of the first that failed, at once when it does."""
    while True:
        states = [rank.poll() for rank in ranks]
        for number, state in enumerate(states):
            if state not in (None, 0):
                return number
        if all(state == 0 for state in states):
            return None
        time.sleep(CHECK)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs: politely, then by force."""
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE
    for rank in ranks:
        try:
            rank.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _told(number: int, state: int, log: Path) -> Exception:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if state == USER_ERROR and lines:
        return UserError(lines[-1])
    how = f"was ended by signal {-state}" if state < 0 else f"ended with status {state}"
    end = "\n".join(lines[-15:])
    return RuntimeError(f"rank {number} {how}; the others were ended, and the same command goes on\n{end}".strip())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
