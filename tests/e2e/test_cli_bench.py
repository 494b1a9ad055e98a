"""`bench`: scripts are listed by their first line, run with their options, and their exit status is handed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personalign.commands import bench

Command = Callable[..., Any]


@pytest.fixture
def scripts(people: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = people / "benchmarks"
    folder.mkdir()
    (folder / "first.py").write_text('"""Ratios of nothing.\n\nMore."""\nimport sys\nsys.exit(len(sys.argv[1:]))\n')
    (folder / "_shared.py").write_text("")
    monkeypatch.setattr(bench, "home", lambda: people)
    return folder


def test_scripts_are_listed(scripts: Path, personalign: Command) -> None:
    assert personalign("bench").out.split() == ["first", "Ratios", "of", "nothing."]


def test_options_reach_the_script_and_its_status_comes_back(scripts: Path, personalign: Command) -> None:
    assert personalign("bench", "first").code == 0
    assert personalign("bench", "first", "--", "--repeats", "3").code == 2


def test_a_typing_mistake_names_the_nearest(scripts: Path, personalign: Command) -> None:
    said = personalign("bench", "frist")
    assert said.code == 2
    assert "'frist'; did you mean first?" in said.err
