"""The command line as a person meets it: two users' data in a folder, commands in this process or in another."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from personalign.cli import main

USERS = [
    {"id": "ana", "truth": {"warmth": 1.0, "length": -0.5}},
    {"id": "ben", "truth": {"warmth": -1.0}},
]
EVENTS = [
    {"user": "ana", "kind": "statement", "text": "Please be kind, and keep it short."},
    {"user": "ben", "kind": "statement", "text": "Just the facts."},
]
PROMPTS = ("Name a tree.", "What is a fjord?", "Where do I swim?")
REQUESTS = [{"user": user["id"], "prompt": prompt, "split": "test"} for user in USERS for prompt in PROMPTS]
PAIRS = [
    {"user": "ana", "prompt": "Hello?", "chosen": "How lovely to hear you!", "rejected": "Yes.", "split": "test"},
    {"user": "ben", "prompt": "Hello?", "chosen": "Yes.", "rejected": "How lovely to hear you!", "split": "test"},
]


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the two users in `people/`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONALIGN_CACHE", str(tmp_path / "cache"))
    for name, rows in {"users": USERS, "events": EVENTS, "requests": REQUESTS, "pairs": PAIRS}.items():
        target = tmp_path / "people" / f"{name}.jsonl"
        target.parent.mkdir(exist_ok=True)
        target.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def personalign(people: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process, from the folder of `people`."""

    def command(*words: str) -> Said:
        capsys.readouterr()
        code = main(list(words))
        return Said(code, *capsys.readouterr())

    return command


@pytest.fixture
def without_torch(people: Path) -> Command:
    """Run a command in a process of its own, in which torch cannot be imported."""

    def command(*words: str) -> Said:
        blocked = "import sys; sys.modules['torch'] = None; from personalign.cli import main; sys.exit(main())"
        done = subprocess.run([sys.executable, "-c", blocked, *words], capture_output=True, text=True, cwd=people)
        return Said(done.returncode, done.stdout, done.stderr)

    return command


@pytest.fixture
def start(people: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a command in a process of its own, as a shell would."""

    def begin(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "personalign", *words]
        pipe = subprocess.PIPE
        # Tests that were started in the background were told to ignore Ctrl-C, and would hand that on.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(command, cwd=people, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed)

    return begin


@pytest.fixture
def small() -> tuple[str, ...]:
    """Overrides for a run of a second; the model is random, so no number means anything."""
    return (
        "model=tiny",
        "precision=fp32",
        "data=jsonl",
        "data.path=people",
        "sampling.max_new_tokens=4",
        "evaluation.resamples=20",
    )
