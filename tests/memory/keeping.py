"""What memories that keep what a network reads of a user's texts have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from personalign.contracts import Memory
from personalign.policy.policy import Policy
from personalign.runtime import traces
from personalign.types import Request, UserState


def read_once_and_forgotten(
    make: Callable[[], Memory],
    asked: Request,
    policy: Policy,
    cache: Path,
    read: str,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`make` gives a memory that knows ada; what `read` names is called for each of the `count` files and never again,
    but where a file is damaged, until she is forgotten."""
    first = make()
    state = first.recall(asked, policy)
    files = sorted(traces.folder(cache, "ada").rglob("*.json"))
    assert len(files) == count
    with monkeypatch.context() as patch:
        patch.setattr(read, lambda *_: pytest.fail("read again"))
        assert first.recall(asked, policy) == state and make().recall(asked, policy) == state
    files[0].write_text("[1.0, 2")
    files[1].write_text("[1.0]")
    again = make()
    assert again.recall(asked, policy) == state, "damaged files are made again"
    again.forget("ada")
    assert not traces.folder(cache, "ada").exists() and again.recall(asked, policy) == UserState()
