"""What a person asks before anything is computed: help, listing, checks. Quick, and torch is never imported."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from personalign.cli import command_line
from personalign.commands import run, validate
from personalign.commands.arguments import split
from personalign.composition import home
from personalign.composition.compose import compose
from personalign.composition.layers import from_overrides
from personalign.composition.parts import catalogue
from personalign.composition.sweeps import cells, read

Command = Callable[..., Any]
COMMANDS = (
    "run", "evaluate", "sweep", "report", "status", "ls", "validate", "memory", "model", "doctor", "bench", "wandb",
)  # fmt: skip
LIGHT = (
    "--help",
    "--version",
    "ls",
    "ls --taxonomy",
    "validate",
    "validate --all",
    "status",
    "run --print-config",
    "bench",
)
HEAVY = ("torch", "transformers", "pytorch_lightning", "wandb", "deepspeed", "peft", "matplotlib")
SECONDS = {"validate --all": 25.0}


@pytest.mark.parametrize("line", LIGHT)
def test_light_commands_import_nothing_heavy_and_are_quick(line: str, people: Any) -> None:
    listing = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    code = f"{listing}from personalign.cli import main; sys.exit(main({line.split()}))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert set(HEAVY).isdisjoint(done.stderr.split())
    assert "personalign.commands.run" in done.stderr.split(), "the modules were listed"
    # Seconds of the processor: what a clock shows also depends on what else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS.get(line, 2.0)


def examples(name: str, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The command lines that a command's help shows, as words."""
    with pytest.raises(SystemExit) as ended:
        command_line().read([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    lines = [line.split("personalign ", 1)[1] for line in shown if "personalign " in line]
    return [re.split(r"\s{2,}", line)[0].split() for line in lines]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_every_help_are_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = examples(name, capsys)
    assert len(shown) >= 2
    for words in shown:
        arguments = command_line().read(words)
        file, overrides = split(getattr(arguments, "words", []))
        if arguments.run in (run.run, validate.validate) and (file is None or file.startswith("experiments/")):
            compose(overrides, file)
        elif file and file.startswith("sweeps/"):
            assert read(file, overrides).cells
        else:
            assert from_overrides(overrides).problems == []


def test_the_commands_are_those_that_are_promised() -> None:
    assert set(command_line().commands) == set(COMMANDS)


def test_ls_lists_every_choice(personalign: Command) -> None:
    rows = json.loads(personalign("ls", "--json").out)
    listed = {(row["group"], row["choice"]) for row in rows}
    parts = {(part.group, part.choice) for part in catalogue()}
    assert parts < listed and len(parts) > 40
    assert ("sweeps", "demo") in listed
    assert all(row["what"] for row in rows)
    table = personalign("ls", "generation").out
    assert "preference_prompt" in table and "arXiv 2410.04070" in table and "state.profile" in table


def test_ls_shows_the_survey_s_tree(personalign: Command) -> None:
    rows = {row["node"]: row["members"] for row in json.loads(personalign("ls", "--taxonomy", "--json").out)}
    assert next(iter(rows)) == "preference memory"
    assert "memory=bm25" in rows["preference memory / implicit / user-generated content"]
    shown = personalign("ls", "--taxonomy").out
    assert "├── user-generated content: memory=bm25" in shown
    narrow = json.loads(personalign("ls", "memory", "--taxonomy", "--json").out)
    assert {name.partition("=")[0] for row in narrow for name in row["members"]} == {"memory"}


def test_validate_counts_all_that_ships(personalign: Command) -> None:
    said = personalign("validate", "--all")
    assert said.code == 0, said.err
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (\w+)", said.out)}
    assert counts["choices"] > len(catalogue()), "reward is chosen twice"
    assert counts["experiments"] == len(home.shelf("experiments"))
    assert counts["cells"] == sum(len(cells(path)) for path in home.shelf("sweeps").values())


def test_validate_all_tells_a_broken_choice(personalign: Command, people: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = people / "own" / "conf" / "generation"
    own.mkdir(parents=True)
    target = "_target_: personalign.generation.plain.Plain\n"
    (own / "odd.yaml").write_text(f"# Odd.\n{target}oddity: 1\n")
    (people / "own" / "experiments").mkdir()
    (people / "own" / "experiments" / "mine.yaml").write_text("sampling:\n  top_q: 1\n")
    monkeypatch.setenv("PERSONALIGN_PATH", str(people / "own"))
    said = personalign("validate", "--all")
    assert said.code == 2
    assert "generation.oddity: no such key" in said.err
    assert "sampling.top_q" in said.err
    assert len(said.err.splitlines()) == 2


def test_validate_reads_a_data_folder(personalign: Command) -> None:
    said = personalign("validate", "people")
    assert (said.code, said.out) == (0, "people: every line is well\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_doctor_has_a_remedy_for_each_problem(personalign: Command, people: Any) -> None:
    (people / "runs").touch()
    said = personalign("doctor", "--json")
    found = {check["name"]: check for check in json.loads(said.out)}
    assert said.code == 1
    assert found["runs"]["ok"] is False and "paths.runs" in found["runs"]["remedy"]
    assert all(check["remedy"] for check in found.values() if check["ok"] is False)
    assert found["model"] == {
        "name": "model",
        "ok": False,
        "value": "smollm2 has not been fetched",
        "remedy": "personalign model fetch",
    }
    assert found["minilm"]["ok"] is None and found["minilm"]["remedy"] == "personalign model fetch minilm"
    assert {"python", "device", "threads", "memory", "cache", "compiler", "wandb", "versions"} <= found.keys()
