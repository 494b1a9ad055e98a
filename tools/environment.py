"""Make a virtual environment and say in its constraints.txt which torch it is held to.

A torch built for an accelerator (CUDA or ROCm) that is already there is kept, be it in the environment or in the
interpreter that makes it: the environment then sees it, and pip is held to exactly that version. Everybody else
gets the version of the constraints file. Usage: python tools/environment.py .venv constraints.txt
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from venv import EnvBuilder


def accelerated_torch(path: list[str]) -> tuple[str, Path] | None:
    """Version and folder of an accelerator's torch on `path`, read without importing it."""
    for found in importlib.metadata.distributions(name="torch", path=path):
        folder = Path(str(found.locate_file("")))
        facts = folder / "torch" / "version.py"
        if facts.is_file() and re.search(r"^(cuda|hip)\b.*=\s*['\"]\d", facts.read_text(), re.MULTILINE):
            return found.version, folder
    return None


def search_path(python: Path) -> list[str]:
    code = "import sys; print('\\n'.join(sys.path[1:]))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()


def site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())


def main(folder: Path, constraints: Path) -> None:
    python = folder / "bin" / "python"
    if not python.exists():
        EnvBuilder(with_pip=True).create(folder)
    kept = accelerated_torch(search_path(python))
    if kept is None and (kept := accelerated_torch(sys.path[1:])):
        (site_packages(python) / "kept_torch.pth").write_text(f"{kept[1]}\n")
    text = constraints.read_text()
    if kept:
        print(f"keeping torch {kept[0]} of {kept[1]}")
        text = re.sub(r"^torch==.*$", f"torch=={kept[0]}", text, flags=re.MULTILINE)
    (folder / "constraints.txt").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
