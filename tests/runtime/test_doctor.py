"""The doctor: each problem that can be faked comes with what to do about it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from personalign.runtime import doctor, provenance, threads
from personalign.runtime.doctor import Check, checks, compiler, disk, memory, packages, python, wandb


def test_all_checks_on_this_machine(tmp_path: Path) -> None:
    found = {check.name: check for check in checks(tmp_path / "runs", tmp_path / "cache")}
    assert list(found) == [
        "python", "packages", "device", "threads", "gpu trainers", "memory", "runs", "cache", "compiler", "wandb"
    ]  # fmt: skip
    assert all(check.remedy for check in found.values() if not check.ok)
    assert not any(check.remedy for check in found.values() if check.ok)
    assert found["python"].ok and "torch " in found["device"].value
    assert not (tmp_path / "runs").exists()


def test_python_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.1")
    check = python()
    assert not check.ok and check.value == "3.9.1" and ">=3.11" in check.remedy


def test_packages_out_of_range_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "requires", lambda _: ["numpy>=99", "no-such-thing<2", "pydantic"])
    check = packages()
    assert not check.ok and f"numpy {provenance.installed('numpy')}, no-such-thing missing" == check.value
    assert check.remedy == "pip install 'numpy>=99' 'no-such-thing<2'"


@pytest.mark.parametrize(("available", "ok"), [("8000000 kB", True), ("1000000 kB", False)])
def test_memory(tmp_path: Path, available: str, ok: bool) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: {available}\n")
    check = memory(tmp_path / "meminfo")
    assert check.ok is ok and ("lower the batch sizes" in check.remedy) is not ok
    assert check.value.endswith("of 15.3 GiB free")
    assert memory(tmp_path / "absent").ok is None


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = disk("runs", tmp_path / "file" / "runs", "paths.runs")
    assert not check.ok and "cannot be written" in check.value and "paths.runs" in check.remedy
    assert not disk("cache", Path("/proc/nowhere"), "paths.cache").ok


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_NEEDED", 2**60)
    check = disk("cache", tmp_path / "not" / "yet", "paths.cache")
    assert not check.ok and "free some space" in check.remedy and os.listdir(tmp_path) == []


def test_a_missing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    check = compiler()
    assert not check.ok and check.value == "no c++ and no ninja"
    assert "apt install g++" in check.remedy and "pip install ninja" in check.remedy
    for tool in ("c++", "ninja"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    assert compiler() == Check("compiler", True, "c++ and ninja")


@pytest.mark.parametrize(
    ("mode", "key", "ok", "value"),
    [
        ("offline", None, True, "offline"),
        ("disabled", None, True, "disabled"),
        ("online", None, False, "online; not logged in"),
        ("online", "environment", True, "online; logged in"),
        ("online", "netrc", True, "online; logged in"),
        (None, None, None, "offline unless logger=wandb; not logged in"),
    ],
)
def test_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None, key: str | None, ok: bool | None, value: str
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, setting in (("WANDB_MODE", mode), ("WANDB_API_KEY", "secret" if key == "environment" else None)):
        monkeypatch.delenv(name, raising=False) if setting is None else monkeypatch.setenv(name, setting)
    if key == "netrc":
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    check = wandb()
    assert (check.ok, check.value) == (ok, value) and "secret" not in str(check)
    assert bool(check.remedy) is not bool(ok)


def test_a_damaged_netrc_is_no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("nonsense\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not doctor.logged_in()


def test_threads_that_are_fewer_or_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable", lambda: (0, 1, 2, 3))
    monkeypatch.setattr(threads, "quota", lambda _: None)
    monkeypatch.setattr(doctor, "gpu_present", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for count, ok, remedy in ((1, False, "unset OMP_NUM_THREADS"), (4, False, "unset OMP_PROC_BIND")):
        monkeypatch.setattr(provenance, "threads", lambda count=count: count)
        assert doctor.threading().ok is ok and doctor.threading().remedy.startswith(remedy)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert doctor.threading() == Check("threads", True, "4 on 4 cores, bound")


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "gpu_present", lambda: True)
    assert not doctor.gpu().ok and "CUDA build of torch" in doctor.gpu().remedy
    monkeypatch.setattr(doctor, "gpu_present", lambda: False)
    assert doctor.gpu().ok is None and "trainer=cpu" in doctor.gpu().remedy
    assert not doctor.device().ok and "pip install 'torch" in doctor.device().remedy


@pytest.mark.parametrize(("flags", "there"), [("fma avx512_bf16 sse", True), ("amx_bf16", True), ("avx2", False)])
def test_bf16_instructions(tmp_path: Path, flags: str, there: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name: x\nflags\t\t: {flags}\n")
    assert doctor.bf16_instructions(tmp_path / "cpuinfo") is there
    assert not doctor.bf16_instructions(tmp_path / "absent")
