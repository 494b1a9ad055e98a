"""Who computes which cell of a sweep: whoever gets the lock of its run, once; nobody waits, and nobody does it again.

Any number of processes, of one launcher or of several, go through the same cells. A cell that another process holds
is passed over and looked at again when the others are through. Whoever gets the lock looks once more whether the cell
has been started since the sweep began: between looking and locking another may have begun it, and it may have failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from personalign.contracts import UserError
from personalign.runtime.rundir import RunDir


class Failure(NamedTuple):
    """What a cell failed with, in one line; for a bug of ours with its traceback."""

    message: str
    trace: str | None

    @classmethod
    def of(cls, error: Exception, trace: str) -> Failure:
        known = isinstance(error, UserError)
        return cls(str(error) if known else f"{type(error).__name__}: {error}", None if known else trace)


@dataclass(frozen=True)
class Turn:
    """A cell that was not done when the sweep began, and how often it had been started by then."""

    run: RunDir
    starts: int

    @classmethod
    def of(cls, run: RunDir) -> Turn:
        """The cell of a run as it stands now."""
        absolute = RunDir(Path(run.path.parent).absolute(), run.identity)
        return cls(absolute, run.starts)

    def standing(self) -> Literal["open", "held", "over"]:
        """Held while somebody computes it; over when it is done, or was begun since and has failed or been killed."""
        status = self.run.status()
        if status == "running":
            return "held"
        return "over" if status == "done" or self.run.starts != self.starts else "open"


def open_cells(turns: Sequence[Turn], first: int = 0) -> Iterator[int]:
    """The numbers of the cells to compute, one at a time, from number `first` around to the one before it.

    Those that others hold come last, if they are open by then; it ends when nothing is open.
    """
    left = [*range(first, len(turns)), *range(first)]
    found = True
    while found and left:
        found, held = False, []
        for number in left:
            if turns[number].standing() == "open":
                found = True
                yield number
            if turns[number].standing() == "held":
                held.append(number)
        left = held
