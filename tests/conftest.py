"""Fixtures that many tests share: a tiny float32 policy, and the embedded model where it has been fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    from personalign.runtime.threads import configure
except ImportError:
    configure = lambda **k: None

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
configure(processes=_WORKERS, index=int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))


@pytest.fixture
def tiny() -> object:
    """A random byte-level Llama in float32: exact enough for equalities, fast enough for many of them."""
    from personalign.policy.loading import Tiny

    model = Tiny(hidden=32, layers=2, heads=4, kv_heads=2, context=512, seed=0)
    return model.build(Path("."), "fp32")
