"""`personalign bench`: the side-by-side speed measurements of benchmarks/, each a script of its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

from personalign.commands.arguments import CommandLine
from personalign.composition.home import home, nearest
from personalign.contracts import UserError

EXAMPLES = """
personalign bench                          what there is
personalign bench decode                   our decoder beside transformers' generate, as ratios
personalign bench released                 PAD and Amulet beside loops that do what their released code does
personalign bench history                  a history that requests share, read once and read for each
personalign bench rloo                     our steps of RLOO beside TRL's
personalign bench train -- --repeats 3     options after -- go to the script
"""


def register(line: CommandLine) -> None:
    parser = line.command("bench", "measure speed side by side; prints ratios", EXAMPLES, bench)
    parser.add_argument("name", nargs="?", metavar="NAME", help="which of them; without it they are listed")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="for the script, after --")


def bench(arguments: Namespace) -> int:
    """Run one script of benchmarks/ in a process of its own, and hand on its exit status."""
    scripts = {path.stem: path for path in sorted((home() / "benchmarks").glob("[a-z]*.py"))}
    if arguments.name is None:
        for name, path in scripts.items():
            print(f"{name:<12} {_summary(path)}")
        return 0
    if arguments.name not in scripts:
        raise UserError(f"there is no benchmark {arguments.name!r}{nearest(arguments.name, scripts)}")
    return subprocess.run([sys.executable, scripts[arguments.name], *arguments.options], check=False).returncode


def _summary(script: Path) -> str:
    return (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").partition("\n")[0]
