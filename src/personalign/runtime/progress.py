"""Progress on the error stream: a Rich bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY = 5.0  # seconds between plain lines
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
_quiet = False
_shown: list[Progress] = []  # one display for bars within bars


def quiet(silent: bool = True) -> None:
    """Show no progress from here on, or show it again; PERSONALIGN_QUIET=1 does it from outside."""
    global _quiet
    _quiet = silent


def _silent() -> bool:
    told = os.environ.get("PERSONALIGN_QUIET", "") not in ("", "0")
    return told or _quiet or any(os.environ.get(name, "0") != "0" for name in RANKS)


class Bar:
    """How far something has come; this one shows nothing. `total` may be None where it is not known."""

    def __init__(self, description: str, total: int | None, unit: str, done: int) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = self.start = done
        self.note = ""
        self.since = time.monotonic()

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units; a note (a loss, a name) stays until the next one."""
        self.done += n
        self.note = note or self.note
        self.show()

    def show(self) -> None:
        """Bring the display up to date."""

    def close(self) -> None:
        """Say how it ended."""

    def rate(self) -> float:
        """Units per second since the bar began; what was done before does not count."""
        return (self.done - self.start) / max(time.monotonic() - self.since, 1e-9)

    def ending(self) -> str:
        """What was done, in what time."""
        return f"{self.done:,} {self.unit} in {duration(time.monotonic() - self.since)}"

    def measures(self) -> list[str]:
        """Count, rate, time left and note, for people."""
        words = [f"{self.done:,} {self.unit}"]
        if self.total:
            words = [f"{self.done:,}/{self.total:,} {self.unit} ({100 * self.done // self.total}%)"]
        if self.done > self.start:
            words.append(f"{amount(self.rate())} {self.unit}/s")
            if self.total and self.total > self.done:
                words.append(f"{duration((self.total - self.done) / self.rate())} left")
        return [*words, self.note] if self.note else words


class Lines(Bar):
    """Plain lines, at most one in every few seconds, and a last one if there was any before it."""

    spoke: float | None = None

    def show(self) -> None:
        now = time.monotonic()
        if now - (self.since if self.spoke is None else self.spoke) >= EVERY:
            self.spoke = now
            self._say(", ".join(self.measures()))

    def close(self) -> None:
        if self.spoke is not None:
            self._say(self.ending())

    def _say(self, words: str) -> None:
        print(f"{self.description}: {words}", file=sys.stderr, flush=True)


class Live(Bar):
    """One row of the Rich display, drawn by its own thread."""

    def __init__(self, description: str, total: int | None, unit: str, done: int, display: Progress) -> None:
        super().__init__(description, total, unit, done)
        self.display = display
        self.row = display.add_task(description, total=total, completed=done, words="")

    def show(self) -> None:
        self.display.update(self.row, completed=self.done, words=", ".join(self.measures()))

    def close(self) -> None:
        self.display.remove_task(self.row)
        if time.monotonic() - self.since >= EVERY:
            self.display.console.print(f"{self.description}: {self.ending()}", markup=False, highlight=False)


@contextmanager
def track(description: str, total: int | None, unit: str = "tokens", *, done: int = 0) -> Iterator[Bar]:
    """A bar for the body: `with track("training", 40, "steps") as bar: bar.advance(1, "loss 0.41")`.

    `done` units were done by an earlier run. Bars may be nested; ranks other than the first show nothing.
    """
    if _silent():
        yield Bar(description, total, unit, done)
    elif sys.stderr.isatty():
        with _display() as display:
            yield from _closing(Live(description, total, unit, done, display))
    else:
        yield from _closing(Lines(description, total, unit, done))


def restore() -> None:
    """Give a terminal back its cursor and a fresh line, where a process that drew bars there was killed."""
    if sys.stderr.isatty() and not _silent():
        print("\x1b[?25h\r\x1b[K", end="", file=sys.stderr, flush=True)


def _closing(bar: Bar) -> Iterator[Bar]:
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def _display() -> Iterator[Progress]:
    if _shown:
        yield _shown[0]
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    words = [TextColumn("{task." + name + "}", markup=False) for name in ("description", "fields[words]")]
    console = Console(stderr=True)
    # What is printed to a pipe must stay there: only a terminal's output goes through the display.
    display = Progress(
        SpinnerColumn(), words[0], BarColumn(24), words[1],
        console=console, transient=True, redirect_stdout=sys.stdout.isatty(),
    )  # fmt: skip
    with display:
        _shown.append(display)
        try:
            yield display
        finally:
            _shown.clear()


def amount(value: float) -> str:
    """A rate with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Seconds as `38 s`, `2:05` or `1:02:05`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if whole < 60:
        return f"{whole} s"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
