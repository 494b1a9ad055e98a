"""The command line, `personalign COMMAND ...`: reads the words, runs one command, says what went wrong in plain lines.

Exit status: 0 done, 1 a run failed, 2 a mistake in what was asked, 130 interrupted. A traceback means a bug of ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from personalign import __version__
from personalign.commands import bench, catalogue, machine, report, run, status, sweep, validate
from personalign.commands.arguments import CommandLine
from personalign.contracts import UserError

SUMMARY = "Compose, train, decode and compare personalized alignment methods for language models."
EXAMPLES = """
  personalign model fetch                                  the embedded model, once
  personalign sweep sweeps/demo.yaml                       the demo: a table, a figure, an HTML report
  personalign run generation=preference_prompt memory=preference_statement
  personalign ls generation                                what can be composed
  personalign validate --all                               check everything that ships
  personalign COMMAND --help                               more examples
"""


def command_line() -> CommandLine:
    """All commands, in the order of the work."""
    line = CommandLine("personalign", SUMMARY, EXAMPLES)
    line.add_argument("--version", action="version", version=f"personalign {__version__}")
    for module in (run, sweep, report, status, catalogue, validate, machine, bench):
        module.register(line)
    return line


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    words = sys.argv[1:] if words is None else words
    try:
        arguments = command_line().read(words)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        if os.environ.get("PERSONALIGN_DEBUG"):
            raise
        return _say(str(error), 2)
    except KeyboardInterrupt:
        return _say(f"interrupted; the same command goes on from here: personalign {' '.join(words)}", 130)
    except BrokenPipeError:
        # Whoever read the output left; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _say(message: str, status: int) -> int:
    kind = "error: " if status == 2 else ""
    for line in message.splitlines():
        print(f"personalign: {kind}{line}", file=sys.stderr)
    return status
