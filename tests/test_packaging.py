"""The wheel carries all that ships and works outside the repository; the project's files agree with one another."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import personalign

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CARRIED = ("conf", "experiments", "sweeps", "benchmarks")


def imported(file: Path) -> set[str]:
    """The top packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_every_import_is_a_stated_dependency() -> None:
    modules = set().union(*(imported(file) for file in (ROOT / "src").rglob("*.py")))
    outside = modules - sys.stdlib_module_names - {"personalign"}
    assert {"torch", "hydra", "yaml"} <= outside
    stated = {re.split(r"[^\w.-]", line)[0].lower() for line in PROJECT["dependencies"]}
    makers = packages_distributions()
    unstated = {m for m in outside if not {name.lower() for name in makers.get(m, [])} & stated}
    assert unstated == set()


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert PROJECT["version"] == personalign.__version__ == citation["version"] == newest[1]
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"


def test_torch_is_held_within_the_range_that_the_package_allows() -> None:
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert pinned[1] == "2.13.0"
    assert "torch>=2.6" in PROJECT["dependencies"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_carries_every_file(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    carried = [f"personalign/{path.relative_to(ROOT)}" for name in CARRIED for path in (ROOT / name).rglob("*.*")]
    packaged = [path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.*")]
    wanted = {name for name in [*carried, *packaged] if "__pycache__" not in name}
    assert wanted - inside == set()
    assert {"personalign/py.typed", "personalign/conf/config.yaml", "personalign/sweeps/demo.yaml"} <= wanted
    assert {name.partition("/")[0] for name in inside} == {"personalign", f"personalign-{PROJECT['version']}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in inside)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that has the wheel, and otherwise sees the packages of this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True, symlinks=True)
    install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", scheme))
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin/personalign"


@pytest.mark.slow
def test_the_wheel_works_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PERSONALIGN"))}

    def command(*words: str) -> str:
        line = [installed, *words]
        return subprocess.run(line, check=True, cwd=tmp_path, env=plain, capture_output=True, text=True).stdout

    rows = json.loads(command("ls", "--json"))
    assert {"group": "sweeps", "choice": "demo"}.items() <= next(r for r in rows if r["choice"] == "demo").items()
    assert command("validate", "--all").startswith("all well: ")
    assert yaml.safe_load(command("run", "--print-config", "seed=3"))["seed"] == 3
    assert "8 cells, 0 done" in command("sweep", "sweeps/demo.yaml", "--dry-run")
