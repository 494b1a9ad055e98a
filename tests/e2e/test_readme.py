"""Every command of the README, in its order, through the real CLI; what computes does so on the tiny model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FAST = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=4",
    "requests.limit=1",
    "requests.pairs=1",
    "data.pool=shipped",
    "data.users=4",
]
TRAINED = {"dpo": "alignment.dpo.steps=1", "pad": "alignment.pad.steps=1"}
COMPUTE = ("run", "sweep")
# Packages that are no dependency, by the word that needs them.
EXTRAS = {"joblib": "joblib", "workspace": "wandb_workspaces"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands(program: str) -> list[list[str]]:
    lines = [line.split("#")[0].split() for block in blocks("bash") for line in block.splitlines()]
    return [words for words in lines if words and words[0] == program]


def execute(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "PERSONALIGN_QUIET": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    found = commands("personalign")
    assert len(found) == 12
    for _, *words in found:
        if any(word in words and not find_spec(package) for word, package in EXTRAS.items()):
            continue  # the extra that it needs is not installed here
        if words[0] in COMPUTE and "--print-config" not in words:
            words = [*words, *FAST]
            if "pad.yaml" in words[1]:
                words.append(TRAINED["pad"])
            if "sweep" in words:
                words += ["debug=fast", "logger=wandb_offline"]
            if "--launcher" in words:
                words.append("seed=1")  # so that there is something to compute
        if words[0] == "doctor":
            continue  # its exit status says how this machine is, not whether the command works: see its own tests
        execute([sys.executable, "-m", "personalign", *words], tmp_path)
    page = (tmp_path / "runs" / "sweeps" / "demo" / "report.html").read_text(encoding="utf-8")
    assert "PAD, K features" in page


def test_the_two_commands_are_targets() -> None:
    targets = [words[1] for words in commands("make")]
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)


def test_the_python_of_the_readme(tmp_path: Path) -> None:
    quickstart = blocks("python")[0]
    assert 15 <= len([line for line in quickstart.splitlines() if line.strip()]) <= 25
    assert re.search(r"-?\d\.\d\d in \[", execute([sys.executable, "-c", quickstart], tmp_path))


def test_the_readme_carries_the_taxonomy_as_it_is() -> None:
    tree = re.findall(r"```\n(taxonomy .*?)```", README, flags=re.S)[0]
    shown = execute([sys.executable, "-m", "personalign", "ls", "--taxonomy"], ROOT)
    assert tree.replace("│", " ").split() == shown.replace("│", " ").split()


def test_files_that_the_readme_names_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []
