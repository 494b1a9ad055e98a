"""`tools/environment.py`: a torch built for an accelerator stays, everybody else gets the constraints file's."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINNED = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))


def make(folder: Path, *, pip: bool = False) -> Path:
    """An environment without packages; the folder of its packages."""
    venv.create(folder, with_pip=pip, symlinks=True)
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))


def put_torch(site: Path, version: str, cuda: str | None) -> None:
    """The files by which pip and the tool know a torch, without its weight."""
    facts = f"__version__ = {version!r}\ncuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n"
    files = {
        "torch/version.py": facts,
        f"torch-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"torch-{version}.dist-info/RECORD": "torch/version.py,,\n",
        f"torch-{version}.dist-info/INSTALLER": "pip\n",
    }
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)


def hold(maker: Path, folder: Path) -> str:
    """Run the tool with the interpreter of `maker` on `folder`: the torch that pip is then held to."""
    tool = ROOT / "tools" / "environment.py"
    subprocess.run([maker / "bin/python", tool, folder, ROOT / "constraints.txt"], check=True)
    lines = (folder / "constraints.txt").read_text().splitlines()
    (held,) = [line for line in lines if line.startswith("torch")]
    return held


@pytest.mark.parametrize("cuda", [None, "12.8"])
def test_a_cuda_torch_of_the_environment_is_kept_and_a_cpu_one_is_not(tmp_path: Path, cuda: str | None) -> None:
    make(tmp_path / "outer")
    put_torch(make(tmp_path / "venv"), "2.9.1", cuda)
    assert hold(tmp_path / "outer", tmp_path / "venv") == ("torch==2.9.1" if cuda else PINNED)


def test_without_any_torch_the_constraints_file_holds(tmp_path: Path) -> None:
    make(tmp_path / "outer")
    make(tmp_path / "venv")
    assert hold(tmp_path / "outer", tmp_path / "venv") == PINNED


def test_pip_leaves_a_cuda_torch_of_the_making_interpreter_alone(tmp_path: Path) -> None:
    put_torch(make(tmp_path / "outer"), "2.9.1+cu128", "12.8")
    make(tmp_path / "venv", pip=True)
    assert hold(tmp_path / "outer", tmp_path / "venv") == "torch==2.9.1+cu128"
    command = ["-m", "pip", "install", "--dry-run", "--no-index", "--constraint", "constraints.txt", "torch>=2.6"]
    done = subprocess.run(
        [tmp_path / "venv/bin/python", *command],
        cwd=tmp_path / "venv",
        check=True,
        capture_output=True,
        text=True,
    )
    assert "already satisfied: torch>=2.6" in done.stdout
    assert "Would install" not in done.stdout
    assert hold(tmp_path / "outer", tmp_path / "venv") == "torch==2.9.1+cu128", "the second time too"
