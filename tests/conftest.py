"""Fixtures that many tests share: a tiny float32 policy, and the embedded model where it has been fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from personalign.contracts import UserError
from personalign.runtime.threads import configure

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
configure(processes=_WORKERS, index=int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))


@pytest.fixture
def tiny(tmp_path: Path) -> object:
    """A random byte-level Llama in float32: exact enough for equalities, fast enough for many of them."""
    from personalign.policy.loading import Tiny

    model = Tiny(hidden=32, layers=2, heads=4, kv_heads=2, context=512, seed=0)
    return model.build(tmp_path / "cache", "fp32")


@pytest.fixture(scope="session")
def _smollm2() -> object:
    from personalign.policy.loading import Pretrained

    cache = Path(os.environ.get("PERSONALIGN_CACHE", "~/.cache/personalign")).expanduser()
    try:
        return Pretrained(name="smollm2", revision=None).build(cache, "fp32")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def smollm2(_smollm2: object) -> object:
    """The embedded model in float32, without adapters; skips where `personalign model fetch` has not run."""
    _smollm2.reset()  # type: ignore[attr-defined]
    return _smollm2
