"""Which cells are open to this process: those that nobody has begun, each once, held ones last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from personalign.commands.cells import Failure, Turn, open_cells
from personalign.contracts import UserError
from personalign.runtime import rundir
from personalign.runtime.rundir import RunDir, Taken


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunDir]:
    """Four runs that are pending; everything happens within one second."""
    monkeypatch.setattr(rundir, "now", lambda: "2026-01-01T00:00:00")
    made = [RunDir(tmp_path, name) for name in "abcd"]
    for run in made:
        run.create(OmegaConf.create({}))
    return made


def finish(run: RunDir, status: str = "done") -> None:
    with run.lock():
        run.set_status("running")
        if status != "killed":
            run.set_status(status)  # type: ignore[arg-type]


def taken(turns: list[Turn], first: int = 0, during: Callable[[int], None] = lambda _: None) -> list[int]:
    """The cells that a process computes, while others do something `during` each."""
    numbers = []
    for number in open_cells(turns, first):
        finish(turns[number].run)
        numbers.append(number)
        during(number)
    return numbers


def test_every_cell_once_from_one_s_own_place_on(runs: list[RunDir]) -> None:
    assert taken([Turn.of(run) for run in runs], first=2) == [2, 3, 0, 1]
    assert taken([Turn.of(run) for run in runs]) == []


def test_what_others_have_begun_since_is_theirs(runs: list[RunDir]) -> None:
    turns = [Turn.of(run) for run in runs]
    for run, status in zip(runs[:3], ("done", "failed", "killed"), strict=True):
        finish(run, status)
    assert runs[2].status() == "interrupted"
    assert taken(turns) == [3]


@pytest.mark.parametrize("status", ["done", "failed", "killed"])
def test_what_another_has_begun_after_the_look_is_not_begun_again(runs: list[RunDir], status: str) -> None:
    """Between looking and locking; no process may tell a failure from the one it looked at by its status alone."""
    finish(runs[0], "failed")
    turn = Turn.of(runs[0])
    assert turn.standing() == "open"
    finish(runs[0], status)
    with pytest.raises(Taken, match="has been begun by another process meanwhile"), runs[0].lock(turn.starts):
        pytest.fail("begun twice")
    with runs[0].lock(Turn.of(runs[0]).starts):
        runs[0].set_status("running")
    assert runs[0].starts == 3


def test_what_had_ended_badly_before_is_open_once(runs: list[RunDir]) -> None:
    finish(runs[1], "failed")
    finish(runs[2], "killed")
    turns = [Turn.of(run) for run in runs]
    seen = []
    for number in open_cells(turns):
        finish(runs[number], "failed" if number == 1 else "done")
        seen.append(number)
    assert seen == [0, 1, 2, 3]
    assert taken(turns) == []


def test_a_held_cell_comes_last_if_it_is_open_by_then(runs: list[RunDir]) -> None:
    """Its holder had begun before the sweep, and is killed while the others are computed."""
    holder = runs[0].lock()
    holder.__enter__()
    runs[0].set_status("running")
    turns = [Turn.of(run) for run in runs]
    assert turns[0].standing() == "held"
    assert taken(turns, during=lambda n: holder.__exit__(None, None, None) if n == 2 else None) == [1, 2, 3, 0]


def test_nobody_waits_for_a_cell_that_stays_held(runs: list[RunDir]) -> None:
    with runs[3].lock():
        runs[3].set_status("running")
        assert taken([Turn.of(run) for run in runs]) == [0, 1, 2]


def test_a_turn_finds_its_run_from_any_folder(
    runs: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    turn = Turn.of(RunDir(Path("."), "a"))
    monkeypatch.chdir("/")
    assert turn.standing() == "open" and turn.run.status() == "pending"


def test_a_bug_keeps_its_traceback_and_a_user_s_error_has_none() -> None:
    assert Failure.of(UserError("no such folder"), "where") == Failure("no such folder", None)
    assert Failure.of(ValueError("3"), "where") == Failure("ValueError: 3", "where")
