"""What it takes to trust a result, or to get it again: versions, machine, revision of the code, time."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PACKAGE = "personalign"


def provenance() -> dict[str, Any]:
    """Plain data for a record; imports nothing heavy and never fails."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": revision(Path(__file__)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": {"model": cpu_model(), "cores": os.cpu_count(), "threads": threads()},
        "gpus": gpus(),
        "packages": versions(),
    }


def requirements() -> list[Requirement]:
    """What the installed package requires on this platform, without its extras; [] when it is not installed."""
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def versions() -> dict[str, str | None]:
    """The installed version of this package and of each that it requires; None where one is missing."""
    return {name: installed(name) for name in [PACKAGE, *sorted(one.name for one in requirements())]}


def installed(name: str) -> str | None:
    """The version of an installed package, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def threads() -> int | None:
    """How many threads compute: torch's number once it is loaded, else what it is told to take."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() else None


def gpus() -> list[str]:
    """The names of the GPUs that torch sees, if it is loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def revision(file: Path) -> dict[str, Any] | None:
    """Git revision and whether anything tracked was changed since; None when `file` is in no repository.

    A file that git does not track belongs to an installed package that lies in somebody else's checkout.
    """
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return None
    head = _git(file, "rev-parse", "HEAD")
    changes = _git(file, "status", "--porcelain", "--untracked-files=no")
    return None if head is None else {"revision": head, "dirty": bool(changes)}


def _git(file: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=file.parent, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
