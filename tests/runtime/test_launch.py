"""Ranks that do nothing, so that they are quick: none outlives its parent, whatever ends it, and none says a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from personalign.runtime.rundir import RunDir, Taken

PARENT = """
import sys
from personalign.runtime.launch import run_ranks
from personalign.runtime.rundir import RunDir
run = RunDir(sys.argv[1], "run")
with run.lock():
    run_ranks("idle", run.path, 3)
"""
IDLE = """
import os, sys, time
from pathlib import Path
from personalign.runtime import launch, lifeline
if "WATCHED_BY_HAND" in os.environ:
    lifeline._by_kernel = lambda: False
if "STRAY" in os.environ:
    launch.end_with = lambda parent: None
launch.belong(*sys.argv[2:])
Path(sys.argv[1], os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(600)
"""
ENDS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    last = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < last, "it took too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether it runs; what has ended and nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    """Whatever a test that failed has left goes with it: ranks end with their parent."""
    yield
    while started:
        started.pop().kill()


def hearing() -> None:
    """Signals as at a terminal: those behind nohup, or of a job in the background, are ignored by what they start."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def begin(folder: Path, **environment: str) -> tuple[subprocess.Popen[str], list[int]]:
    """The parent, in a session of its own as at a terminal, and its three ranks."""
    (folder / "idle.py").write_text(IDLE)
    paths = os.pathsep.join(p for p in (str(folder), os.environ.get("PYTHONPATH")) if p)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hearing,
    )
    started.append(parent)
    places = [folder / "run" / str(rank) for rank in range(3)]
    until(lambda: all(place.is_file() and place.read_text() for place in places))
    return parent, [int(place.read_text()) for place in places]


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="there is no /proc to look at processes")
class TestRanks:
    @pytest.mark.parametrize("by_hand", [{}, {"WATCHED_BY_HAND": "1"}], ids=["kernel", "by hand"])
    @pytest.mark.parametrize("number", ENDS, ids=[one.name for one in ENDS])
    def test_end_with_their_parent(self, number: signal.Signals, by_hand: dict[str, str], tmp_path: Path) -> None:
        parent, ranks = begin(tmp_path, **by_hand)
        parent.send_signal(number)
        until(lambda: not any(map(alive, ranks)), seconds=3)
        assert parent.wait() == -number
        assert parent.communicate()[1] == ""
        with RunDir(tmp_path, "run").lock():
            pass

    @pytest.mark.parametrize("times", [1, 2, 5])
    def test_do_not_hear_ctrl_c(self, times: int, tmp_path: Path) -> None:
        parent, ranks = begin(tmp_path)
        for _ in range(times):
            os.killpg(parent.pid, signal.SIGINT)
        told = parent.communicate(timeout=20)[1]
        assert told.strip().splitlines()[-1] == "KeyboardInterrupt", "the parent's caller is told"
        assert 'File "<string>"' in told and "idle.py" not in told
        until(lambda: not any(map(alive, ranks)), seconds=3)
        assert [(tmp_path / "run" / f"rank-{rank}.log").read_text() for rank in range(3)] == ["", "", ""]

    def test_that_outlive_their_parent_keep_the_run(self, tmp_path: Path) -> None:
        parent, ranks = begin(tmp_path, STRAY="1")
        parent.kill()
        parent.wait()
        for rank in ranks:
            with pytest.raises(Taken, match=f"is in use by process {parent.pid} on .*; wait for it, or end it first"):
                RunDir(tmp_path, "run").lock().__enter__()
            os.kill(rank, signal.SIGKILL)
            until(lambda rank=rank: not alive(rank))  # type: ignore[misc]
        with RunDir(tmp_path, "run").lock():
            pass


def test_whose_parent_is_gone_ends_at_once() -> None:
    words = "from personalign.runtime.lifeline import end_with; end_with(1 << 30); print('still here')"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
