"""A random tiny policy in float32, pairs with labels, and a trainer that writes below tmp_path."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from personalign.contracts import Data, Guide
from personalign.policy.loading import Tiny
from personalign.policy.policy import Policy
from personalign.runtime.fitting import Fitting
from personalign.types import Event, Message, Pair, Request, Score

CPU = {
    "accelerator": "cpu",
    "strategy": "none",
    "devices": 1,
    "num_nodes": 1,
    "process_group_backend": None,
}
WORDS = ["the", "cat", "dog", "sun", "rain", "walks", "sings", "slowly", "gladly", "under", "green", "bread"]


def sentence(draw: random.Random, low: int, high: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high))) + "."


def make_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of four users over a few prompts, with two labels each and ratings that differ by these."""
    draw = random.Random(seed)
    prompts = [sentence(draw, 2, 6) for _ in range(max(2, count // 2))]
    pairs = []
    for i in range(count):
        request = Request(
            id=f"r{i}", user=f"u{i % 4}", messages=(Message("user", draw.choice(prompts)),), time=10.0, split="train"
        )
        labels = {"warmth": draw.uniform(-2, 2), "grade": draw.uniform(-2, 2)}
        texts = sentence(draw, 3, 9), sentence(draw, 3, 9)
        ratings = {d: (label / 2, -label / 2) for d, label in labels.items()}
        pair = Pair(id=f"p{i}", request=request, chosen=texts[0], rejected=texts[1], labels=labels, ratings=ratings)
        pairs.append(pair)
    return pairs


class Given(Data):
    """Data that a test spells out."""

    def __init__(self, pairs: Sequence[Pair], events: Sequence[Event] = ()) -> None:
        self._pairs, self._events = pairs, events

    def users(self) -> Sequence[str]:
        return sorted({pair.request.user for pair in self._pairs})

    def events(self, user: str) -> Sequence[Event]:
        return [event for event in self._events if event.user == user]

    def requests(self, split: str) -> Sequence[Request]:
        return [pair.request for pair in self.pairs(split)]

    def pairs(self, split: str) -> Sequence[Pair]:
        return self._pairs if split == "train" else []

    def fingerprint(self) -> str:
        return "given"


def plain(request: Request) -> tuple[Message, ...]:
    return request.messages


def letters(text: str) -> float:
    """How many letters a text has."""
    return float(sum(c.isascii() and c.isalpha() for c in text))


def a_guide(rate: Callable[[str], float] = letters, content: object = "letters") -> Guide:
    """A guide that rates texts alone."""
    return Guide(lambda asked: [[Score(rate(text)) for text in texts] for _, texts in asked], lambda requests: content)


def tiny_policy(seed: int = 0) -> Policy:
    tiny = Tiny(hidden=32, layers=2, heads=4, kv_heads=2, context=512, seed=seed)
    policy = tiny.build(Path(), "fp32")
    policy.cache = None
    return policy


@pytest.fixture
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture
def make_policy() -> Callable[[], Policy]:
    return tiny_policy


@pytest.fixture
def pairs() -> list[Pair]:
    return make_pairs(12)


@pytest.fixture
def given() -> Callable[..., Given]:
    return Given


@pytest.fixture
def render() -> Callable[[Request], tuple[Message, ...]]:
    return plain


@pytest.fixture
def make_fitting(tmp_path: Path) -> Callable[..., Fitting]:
    def make(name: str = "run", **changes: Any) -> Fitting:
        values: dict[str, Any] = {
            "trainer": CPU,
            "folder": tmp_path / name,
            "cache": tmp_path / "cache",
            "logger": None,
            "seed": 0,
            "micro_batch": 2,
        }
        return Fitting(**{**values, **changes})

    return make


RECIPE: dict[str, Any] = {
    "learning_rate": 0.01,
    "warmup": 0.2,
    "schedule": "cosine",
    "steps": 6,
    "batch_size": 4,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "checkpoint_every": 1,
    "max_prompt": 200,
    "max_answer": 100,
}
LORA: dict[str, Any] = {
    "rank": 4,
    "alpha": 8.0,
    "dropout": 0.0,
    "targets": ["q_proj", "v_proj", "down_proj"],
    "depth": 1.0,
}


@pytest.fixture
def dpo_values() -> dict[str, Any]:
    return {**RECIPE, **LORA, "adapter": "aligned", "beta": 0.1, "imitation": 0.0, "pairs": None}


@pytest.fixture
def sft_values() -> dict[str, Any]:
    return {**RECIPE, **LORA, "adapter": "sft", "pairs": None}


@pytest.fixture
def rloo_values() -> dict[str, Any]:
    lora = {name: value for name, value in LORA.items() if name != "dropout"}
    own = {"samples": 3, "beta": 0.05, "target_kl": 0.5, "horizon": 20, "normalize": False, "side_by_side": 64}
    return {**RECIPE, **lora, **own, "adapter": "rloo", "max_answer": 8}


@pytest.fixture
def make_guide() -> Callable[..., Guide]:
    return a_guide


@pytest.fixture
def pad_values() -> dict[str, Any]:
    return {
        **RECIPE,
        **LORA,
        "adapter": "feature",
        "dimensions": None,
        "min_gap": 0.2,
        "pairs": 8,
        "beta": 0.1,
    }


@pytest.fixture
def genarm_values() -> dict[str, Any]:
    return {
        **RECIPE,
        **LORA,
        "adapter": "arm",
        "dimensions": None,
        "min_gap": 0.2,
        "pairs": 8,
        "beta": 0.1,
    }


@pytest.fixture
def bipo_values() -> dict[str, Any]:
    own = {"vector": "bipo", "height": 0.0, "dimensions": None, "min_gap": 0.2, "pairs": 8, "beta": 0.1}
    return {**RECIPE, **own, "learning_rate": 0.05}


@pytest.fixture
def difference_values() -> dict[str, Any]:
    return {
        "vector": "difference",
        "height": 0.0,
        "pooling": "mean",
        "dimensions": None,
        "min_gap": 0.2,
        "pairs": 8,
        "max_prompt": 200,
        "max_answer": 100,
    }


DRAWN: dict[str, Any] = {"dimensions": None, "signed": True, "concentration": 1.0, "draws": 2, "pairs": 8, "beta": 0.1}


@pytest.fixture
def modpo_values() -> dict[str, Any]:
    return {**RECIPE, **LORA, **DRAWN, "adapter": "modpo", "scale": 1.0, "min_gap": 0.2}


@pytest.fixture
def chebyshev_values() -> dict[str, Any]:
    return {**RECIPE, **LORA, **DRAWN, "adapter": "cheb", "utopia": 3.0, "temperature": 0.0, "min_gap": 0.1}


@pytest.fixture
def parm_values() -> dict[str, Any]:
    return {**RECIPE, **LORA, **DRAWN, "adapter": "parm", "min_gap": 0.2}


@pytest.fixture
def ric_values() -> dict[str, Any]:
    return {**RECIPE, **LORA, "adapter": "ric", "dimensions": None, "pairs": None}


@pytest.fixture
def head_values() -> dict[str, Any]:
    return {**RECIPE, "beta": 0.1, "pairs": None}
