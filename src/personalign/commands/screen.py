"""Where tables go: a terminal's width is kept; a pipe gets whole lines, without colours."""

from __future__ import annotations

from rich.console import Console

PIPE_WIDTH = 200


def console() -> Console:
    """A Rich console for standard output."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=PIPE_WIDTH)
