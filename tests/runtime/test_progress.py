"""Progress: lines off a terminal, bars on one, silence where it is asked for."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from personalign.runtime import progress
from personalign.runtime.progress import amount, duration, quiet, restore, track

ON_A_TERMINAL = """
from personalign.runtime.progress import track
print("before")
with track("cells", 2, "cells") as outer:
    outer.advance(1)
    with track("training [all]", 40, "steps", done=10) as inner:
        for step in range(30):
            inner.advance(1, "loss 0.41")
        print("within")
        inner.display.refresh()
print("after")
"""


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_line_every_five_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with track("training", 40, "steps") as bar:
        for step in range(40):
            clock.now += 0.5
            bar.advance(1, f"loss {1 / (step + 1):.2f}")
    assert capsys.readouterr().err.splitlines() == [
        "training: 10/40 steps (25%), 2.0 steps/s, 15 s left, loss 0.10",
        "training: 20/40 steps (50%), 2.0 steps/s, 10 s left, loss 0.05",
        "training: 30/40 steps (75%), 2.0 steps/s, 5 s left, loss 0.03",
        "training: 40/40 steps (100%), 2.0 steps/s, loss 0.03",
        "training: 40 steps in 20 s",
    ]


def test_what_was_done_before_does_not_count_as_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with track("answers", 1200, done=1000) as bar:
        clock.now += 10
        bar.advance(50)
    assert "1,050/1,200 tokens (87%), 5.0 tokens/s, 30 s left" in capsys.readouterr().err


def test_an_unknown_total_and_a_note_that_stays(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with track("reading", None, "lines") as bar:
        bar.advance(1, "a.jsonl")
        clock.now += 8
        bar.advance(3)
    assert capsys.readouterr().err.splitlines()[0] == "reading: 4 lines, 0.50 lines/s, a.jsonl"


def test_short_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with track("short", 2) as bar:
        bar.advance(2)
    assert capsys.readouterr() == ("", "")


def test_an_error_passes_through(clock: Clock) -> None:
    with pytest.raises(KeyError), track("failing", 2):
        raise KeyError


@pytest.mark.parametrize("variable", ["PERSONALIGN_QUIET", "LOCAL_RANK", "RANK"])
def test_quiet_from_outside(
    variable: str, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, silent in (("1", True), ("0", False)):
        monkeypatch.setenv(variable, value)
        with track("training", 2, "steps") as bar:
            clock.now += 6
            bar.advance(2)
        assert (capsys.readouterr().err == "") is silent


def test_quiet_from_inside(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    quiet()
    try:
        with track("training", 2, "steps") as bar:
            clock.now += 6
            bar.advance(2)
            assert bar.done == 2
    finally:
        quiet(False)
    assert capsys.readouterr().err == ""


def test_bars_on_a_terminal_leave_a_pipe_alone() -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL], stdout=subprocess.PIPE, stderr=follower, env=environment
    )
    os.close(follower)
    assert process.stdout is not None and process.stdout.read() == b"before\nwithin\nafter\n"
    assert process.wait() == 0
    drawn = os.read(leader, 1 << 20).decode()
    os.close(leader)
    assert "training [all]" in drawn and "40/40 steps (100%)" in drawn and "loss 0.41" in drawn
    assert "1/2 cells (50%)" in drawn


def test_a_terminal_gets_its_cursor_back_and_a_pipe_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    restore()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    restore()
    assert capsys.readouterr().err == "\x1b[?25h\r\x1b[K"


def test_numbers_for_people() -> None:
    assert [amount(value) for value in (0.123, 1.26, 99.94, 1234.5)] == ["0.12", "1.3", "99.9", "1,234"]
    assert [duration(value) for value in (0.4, 59.4, 59.6, 125, 3725)] == ["0 s", "59 s", "1:00", "2:05", "1:02:05"]
