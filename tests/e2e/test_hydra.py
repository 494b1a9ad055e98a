"""Hydra's own command line runs the same experiments into the same run directories."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.mark.slow
def test_a_multirun_makes_the_runs_that_the_command_makes(
    people: Path, small: tuple[str, ...], personalign: Command, without_torch: Command
) -> None:
    assert personalign("run", *small, "seed=1").code == 0
    before = {path.parent.name: path.read_bytes() for path in Path("runs").glob("*/record.json")}
    command = [sys.executable, "-m", "personalign.hydra_main", "--multirun", *small, "seed=0,1"]
    subprocess.run(command, check=True, capture_output=True)
    after = {path.parent.name: path.read_bytes() for path in Path("runs").glob("*/record.json")}
    assert len(after) == 2
    assert before.items() <= after.items(), "the run that was done is not computed again"
    assert "this run is done" in without_torch("run", *small).out


def test_a_mistake_stops_hydra_too(people: Path) -> None:
    command = [sys.executable, "-m", "personalign.hydra_main", "generation=pad"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "generation=pad needs state.stance" in done.stderr
