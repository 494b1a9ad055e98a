"""Kills a run with SIGKILL just before a write, goes on with it, and tells whether it ends as one that was left alone.

    python _killing.py FOLDER OVERRIDE...

Every way to a file passes Python's audit hooks: opening for appending, putting a written file in its place, removing.
One whole run lists them; then, for the first and the last of each kind, a run in an empty folder is killed there and
run again. Each is a forked process, so that packages are imported once. Prints a JSON object: what differs, by write.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from personalign.commands.run import ready

ready()
from personalign.composition.compose import compose  # noqa: E402 - threads are settled before torch is imported
from personalign.experiment import Experiment  # noqa: E402

WRITING = os.O_WRONLY | os.O_RDWR
PLACES = {"open": 0, "os.rename": 1, "os.remove": 0}  # where an event has the path that it changes
CHANGES = ("cost", "provenance", "config")  # times, the host, and where the runs lie


def written(event: str, arguments: Sequence[Any], below: str) -> str | None:
    """What a write is called, the same in every run; None for everything else."""
    if event not in PLACES or (event == "open" and not arguments[2] & WRITING):
        return None
    path = arguments[PLACES[event]]
    path = os.path.abspath(os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else ""
    if not path.startswith(below) or path.endswith(".tmp"):
        return None  # what is half written counts from when it is put into its place
    return f"{event} {re.sub(r'[0-9a-f]{8,}', '#', os.path.basename(path))}"


def watch(folder: Path, kill_at: int | None) -> None:
    """Write down the writes below a folder, or end before the one of that number."""
    log = os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    below, seen = str(folder) + os.sep, [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        name = written(event, arguments, below)
        if name is not None:
            if seen[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1
            os.write(log, f"{name}\n".encode())

    sys.addaudithook(hook)


def run(folder: Path, words: Sequence[str], kill_at: int | None = None, killing: bool = False) -> int:
    """The exit status of a forked process that runs the composition; killed before a write if so asked."""
    child = os.fork()
    if child == 0:
        try:
            if killing or kill_at is not None:
                watch(folder, kill_at)
            Experiment(compose([*words, f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}"])).run()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def result(folder: Path) -> dict[str, Any]:
    """All that must be the same: figures, answers, what users were asked, the bytes of what was trained."""
    (path,) = folder.glob("runs/*/record.json")
    record = json.loads(path.read_text())
    kept = {name: value for name, value in record.items() if name not in CHANGES}
    for figures in (kept["metrics"], *(point["metrics"] for point in kept.get("rounds", ()))):
        figures.pop("tokens_per_second", None)
    kept["status"] = json.loads(path.with_name("status.json").read_text())["status"]
    kept |= {name: lines(path.with_name(name)) for name in ("answers.jsonl", "rounds.jsonl")}
    return {**kept, **dict(trained(folder / "runs" / "policies"))}


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, if there is one, without what they cost."""
    read = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [{name: value for name, value in one.items() if name != "cost"} for one in read]


def trained(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "lock" and not path.name.endswith(".tmp"):
            yield str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()


def differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def moments(names: Sequence[str]) -> list[int]:
    """The first and the last write of each kind."""
    last = {name: number for number, name in enumerate(names)}
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    return sorted({*first.values(), *last.values()})


def load(words: Sequence[str]) -> None:
    """Import what the parts need, once for all children; nothing is computed."""
    cfg: Any = compose(words)
    parts = [node for node in cfg.values() if isinstance(node, DictConfig) and "_target_" in node]
    for part in [*parts, *cfg.memory.values(), *cfg.alignment.values()]:
        if part["_target_"]:
            importlib.import_module(part["_target_"].rpartition(".")[0])


def main(root: Path, words: Sequence[str]) -> None:
    load(words)
    whole = root / "whole"
    assert run(whole, words, killing=True) == 0
    expected, names = result(whole), whole.with_suffix(".log").read_text().splitlines()
    told = {}
    for number in moments(names):
        folder = root / f"killed-{number}"
        name = f"{number} {names[number]}"
        if run(folder, words, kill_at=number) != -signal.SIGKILL:
            told[name] = ["was not killed"]
        elif run(folder, words) != 0:
            told[name] = ["does not go on"]
        else:
            told[name] = differing(result(folder), expected)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
