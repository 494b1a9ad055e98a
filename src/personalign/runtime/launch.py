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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from personalign.contracts import UserError
from personalign.runtime import progress, rundir
from personalign.runtime.lifeline import end_with

# What a rank exits with when the user can put right what stopped it; it has said so itself.
USER_ERROR = 2
CHECK = 0.05


def run_ranks(module: str, folder: Path, processes: int) -> None:
    """Run `python -m module folder`, with what `belong` is to be told, as so many ranks on this machine, to their end.

    When one fails the others are ended, as all are on Ctrl-C and when this process is killed. Raises UserError where a
    rank met one (its lines are in the run's rank logs), RuntimeError with the end of a rank's log where it broke.
    """
    environment = {**os.environ, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    environment |= {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    logs = [folder / f"rank-{rank}.log" for rank in range(processes)]
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        with _deaf():
            for rank, log in enumerate(logs):
                ranks.append(_start(module, folder, environment, rank, log))
        failed = _watch(ranks)
    finally:
        _end(ranks)
    if failed is not None:
        raise _told(failed, ranks[failed].returncode, logs[failed])


def belong(parent: str, *locks: str) -> None:
    """A rank ends with the process that started it, and keeps the run's lock, which is free when all of them are gone.

    Both are told on the rank's command line, behind the folder.
    """
    end_with(int(parent))
    for descriptor in locks:
        rundir.keep(int(descriptor))


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C, which a terminal sends to all processes, waits here, and is never heard by those that are started."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(module: str, folder: Path, environment: dict[str, str], rank: int, log: Path) -> subprocess.Popen[bytes]:
    mine = {**environment, "LOCAL_RANK": str(rank), "RANK": str(rank)}
    locks = rundir.held()
    command = [sys.executable, "-m", module, str(folder), str(os.getpid()), *map(str, locks)]
    with log.open("wb") as stream:
        errors = None if rank == 0 else stream  # rank 0 speaks for all on the terminal
        return subprocess.Popen(command, env=mine, stdout=stream, stderr=errors, pass_fds=locks)


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
    """Kill what still runs, all before any is waited for: it goes on from any moment, and rank 0 must not complain
    on the terminal that it has lost another. Where a second Ctrl-C comes between, they end with this process."""
    try:
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.wait()
    finally:
        if any(rank.returncode != 0 for rank in ranks):
            progress.restore()


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
