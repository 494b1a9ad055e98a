"""Seeds: one for the run, others derived from it by name."""

from __future__ import annotations

import hashlib
import random
import sys


def derive(seed: int, *names: str) -> int:
    """A stable 63-bit seed from a seed and names: the same on every machine and in every process."""
    digest = hashlib.sha256("\x00".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices), the latter two if they were imported."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
