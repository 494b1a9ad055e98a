"""Provenance: what git, pip and the machine say, and None where they say nothing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from personalign.runtime import provenance as module
from personalign.runtime.provenance import installed, provenance, requirements, revision, versions


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *names, *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_it_is_plain_and_says_where_and_when() -> None:
    told = json.loads(json.dumps(provenance()))
    assert told["python"] == platform.python_version() and told["cpu"]["cores"] == os.cpu_count()
    assert told["time"].startswith("20") and told["time"].endswith("+00:00")
    assert told["packages"]["numpy"] == __import__("numpy").__version__


def test_it_imports_nothing_heavy() -> None:
    code = "import sys; from personalign.runtime import provenance as p; p.provenance(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_extras_are_not_required(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=1", "pytest>=8; extra == 'dev'", "winreg>=1; sys_platform == 'no-such'", "not-installed"]
    monkeypatch.setattr(module, "requires", lambda _: lines)
    assert [one.name for one in requirements()] == ["numpy", "not-installed"]
    assert list(versions()) == ["personalign", "not-installed", "numpy"] and versions()["not-installed"] is None


def test_an_uninstalled_package_requires_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGE", "no-such-package")
    assert requirements() == [] and versions() == {"no-such-package": None}
    assert installed("numpy") == __import__("numpy").__version__


def test_the_revision_is_of_tracked_code_alone(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("1")
    assert revision(code) is None  # no repository
    git(tmp_path, "init")
    assert revision(code) is None  # somebody's checkout, but not their code
    git(tmp_path, "add", "code.py")
    assert revision(code) is None  # no commit yet
    git(tmp_path, "commit", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert revision(code) == {"revision": head, "dirty": False}
    (tmp_path / "notes").write_text("untracked")
    assert revision(code) == {"revision": head, "dirty": False}
    code.write_text("2")
    assert revision(code) == {"revision": head, "dirty": True}


def test_without_git_there_is_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision(Path(__file__)) is None
