"""Processes that end with the one that started them, however that one ends: none computes on beside its next start."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

LOOK = 0.2  # seconds between two looks at the parent, where the kernel does not watch it
SIGNAL_OF_DEATH = 1  # PR_SET_PDEATHSIG of Linux's prctl


def end_with(parent: int) -> None:
    """Be killed when `parent`, which started this process, is gone; at once if it is gone already.

    Nothing is put in order first, since what a run has written is whole at any moment. On Linux the kernel does it, as
    soon as the thread that started this process ends.
    """
    if not _by_kernel():
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        _die()


def _by_kernel() -> bool:
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    return prctl is not None and prctl(SIGNAL_OF_DEATH, ctypes.c_ulong(signal.SIGKILL)) == 0


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
