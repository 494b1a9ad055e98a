"""The command line, `personalign COMMAND ...`: reads the words, runs one command, says what went wrong in plain lines.

Exit status: 0 done, 1 a run failed, 2 a mistake in what was asked, 130 interrupted. A traceback means a bug of ours.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from personalign import __version__
from personalign.commands import (
    bench,
    catalogue,
    machine,
    memory,
    report,
    run,
    status,
    sweep,
    validate,
    workspace,
)
from personalign.commands.arguments import CommandLine
from personalign.contracts import UserError
from personalign.runtime.logs import debugging

SUMMARY = "Compose, train, decode and compare personalized alignment methods for language models."
EXAMPLES = """
personalign model fetch                                  the embedded model, once
personalign sweep sweeps/demo.yaml                       the demo: a table, a figure, an HTML report
personalign run generation=preference_prompt memory=statement
personalign ls generation                                what can be composed
personalign validate --all                               check everything that ships
personalign COMMAND --help                               more examples
"""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def command_line() -> CommandLine:
    """All commands, in the order of the work."""
    line = CommandLine("personalign", SUMMARY, EXAMPLES)
    line.add_argument("--version", action="version", version=f"personalign {__version__}")
    for module in (run, sweep, report, status, catalogue, validate, memory, machine, bench, workspace):
        module.register(line)
    return line


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; PERSONALIGN_DEBUG=1 shows where a user's error was raised."""
    words = sys.argv[1:] if words is None else words
    try:
        arguments = command_line().read(words)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        if debugging():
            raise
        return _say(2, *(f"error: {line}" for line in str(error).splitlines()))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one could only spoil the ending
        return _say(130, f"interrupted; the same command goes on from here: personalign {shlex.join(words)}")
    except OSError as error:
        if error.errno not in (errno.EPIPE, *FULL):
            raise
        _drop_output()
        return _say(2, f"error: cannot write the output: {error.strerror}") if error.errno in FULL else 1


def _say(code: int, *lines: str) -> int:
    for line in lines:
        print(f"personalign: {line}", file=sys.stderr)
    return code


def _drop_output() -> None:
    """Whoever read the output has left, or its disk is full: Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
