"""DeepSpeed's operator: no compiler, a build that fails, a build that was killed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from personalign.contracts import UserError
from personalign.runtime import operators


def test_no_compiler_is_said_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match=r"no c\+\+ and no ninja: install a C\+\+ compiler.*or use trainer=ddp_cpu"):
        operators.build(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("accelerator", "other"), [("cpu", "ddp_cpu"), ("cuda", "ddp")])
def test_no_deepspeed_is_said(accelerator: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"DeepSpeed is not installed: .* or use trainer={other}$"):
        operators.require_deepspeed(accelerator)


def test_a_build_that_fails_is_one_line(tmp_path: Path) -> None:
    class Builder:
        def load(self, verbose: bool) -> None:
            raise RuntimeError("Error building extension 'x'\n[1/2] c++ ...")

    with pytest.raises(UserError, match=r"^DeepSpeed's operator could not be built: Error building extension 'x'; "):
        operators._load(Builder())


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "deepspeed_shm_comm" / "lock"
    left.parent.mkdir()
    left.touch()
    with operators._alone(tmp_path):
        assert not left.exists()
