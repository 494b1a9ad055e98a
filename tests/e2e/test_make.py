"""The Makefile: what it says of an old Python, what it lists, and that a second call has nothing to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("Makefile", "pyproject.toml", "constraints.txt", "tools/environment.py")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that `make` reads, without an environment."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(["make", *words], cwd=folder, env=settings, capture_output=True, text=True)


def test_an_old_python_is_named_with_the_remedy(copy: Path) -> None:
    (copy / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 9, 2, 'final', 0)\n")
    done = make(copy, "demo", f"PYTHON={sys.executable}", PYTHONPATH=str(copy))
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (copy / ".venv").exists()


def test_help_lists_every_target(copy: Path) -> None:
    listed = make(copy).stdout
    for target in ("demo", "test", "test-all", "lint", "wheel", "clean"):
        assert f"make {target} " in listed


def test_an_installed_environment_is_left_alone_until_the_project_changes(copy: Path) -> None:
    (copy / ".venv").mkdir()
    for stamp in (".stamp", ".stamp-dev"):
        (copy / ".venv" / stamp).touch()
    assert make(copy, "--question", ".venv/.stamp-dev").returncode == 0
    assert make(copy, "--question", "-W", "constraints.txt", ".venv/.stamp-dev").returncode == 1
