"""Events and memories that the memory tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from personalign.contracts import Memory
from personalign.memory.behaviour import Behaviour
from personalign.memory.bm25 import BM25
from personalign.memory.demographics import Demographics
from personalign.memory.dense import Dense
from personalign.memory.history_vectors import HistoryVectors
from personalign.memory.recency import Recency
from personalign.memory.stance_inferred import StanceInferred
from personalign.memory.stance_stated import StanceStated
from personalign.memory.statement import Statement
from personalign.types import Event, Message, Request

CONF = Path(__file__).parents[2] / "conf"
RATINGS: dict[str, Any] = yaml.safe_load((CONF / "config.yaml").read_text())["ratings"]
KINDS = ["text", "statement", "choice", "rating"]
PAYLOADS: dict[str, dict[str, Any]] = {
    "text": {"text": "a walk in the woods"},
    "statement": {"text": "I like short answers."},
    "choice": {"prompt": "What is tea?", "chosen": "A drink.", "rejected": "No idea."},
    "rating": {"prompt": "What is rain?", "response": "Water.", "rating": 4},
    "attribute": {"name": "age", "value": 44},
    "stance": {"stance": {"warmth": 0.5, "length": -1}},
}


def make_event(id: str, kind: str = "text", *, user: str = "ada", time: float = 0.0, **payload: Any) -> Event:
    return Event(id=id, user=user, time=time, kind=kind, payload=payload or PAYLOADS[kind])  # type: ignore[arg-type]


def make_request(text: str = "Any news?", *, user: str = "ada", time: float = float("inf")) -> Request:
    return Request(id="q", user=user, time=time, messages=(Message("user", text),))


def inferring(**changes: Any) -> StanceInferred:
    values: dict[str, Any] = {"dimensions": None, "prior_scale": 1.0, "half_life": None, **RATINGS}
    return StanceInferred(**{**values, **changes})


MEMORIES: dict[str, tuple[Callable[[], Memory], str]] = {
    "recency": (lambda: Recency(k=3, kinds=KINDS), "text"),
    "bm25": (lambda: BM25(k=3, k1=1.5, b=0.75, kinds=KINDS), "text"),
    "behaviour": (
        lambda: Behaviour(
            k=3, by="similarity", k1=1.5, b=0.75, choice="{prompt} {chosen}", rating="{prompt} {response} {rating}"
        ),
        "choice",
    ),
    "statement": (lambda: Statement(k=3, separator=" "), "statement"),
    "stance_stated": (StanceStated, "stance"),
    "stance_inferred": (inferring, "choice"),
    "demographics": (lambda: Demographics(names=None, separator="; "), "attribute"),
}


@pytest.fixture
def event() -> Callable[..., Event]:
    return make_event


@pytest.fixture
def request_of() -> Callable[..., Request]:
    return make_request


@pytest.fixture(scope="session")
def infer() -> Callable[..., StanceInferred]:
    """stance_inferred with the shipped ratings, and some values changed."""
    return inferring


@pytest.fixture
def dense(encoder: Path, tmp_path: Path) -> Callable[..., Dense]:
    """dense with the tiny encoder and a cache of the test's own, and some values changed."""

    def make(**changes: Any) -> Dense:
        values: dict[str, Any] = {"k": 3, "name": str(encoder), "revision": None, "max_tokens": 64, "batch_size": 4}
        return Dense(**{**values, "kinds": KINDS, "cache": str(tmp_path / "cache"), **changes})

    return make


@pytest.fixture
def history_vectors(encoder: Path, tmp_path: Path) -> Callable[..., HistoryVectors]:
    """history_vectors with the tiny encoder and a cache of the test's own, and some values changed."""

    def make(**changes: Any) -> HistoryVectors:
        values: dict[str, Any] = {"k": 3, "name": str(encoder), "revision": None, "max_tokens": 64, "batch_size": 4}
        return HistoryVectors(**{**values, "kinds": KINDS, "cache": str(tmp_path / "cache"), **changes})

    return make


@pytest.fixture(params=[*MEMORIES, "dense", "history_vectors"])
def any_memory(request: pytest.FixtureRequest) -> tuple[Callable[[], Memory], str]:
    """Each memory's constructor, with a kind of event that it keeps."""
    if request.param not in MEMORIES:
        return request.getfixturevalue(request.param), "text"
    return MEMORIES[request.param]
