"""Requests, states and policies that the generation tests share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from omegaconf import OmegaConf

from personalign.composition.build import build
from personalign.plans import PolicySpec, Rater
from personalign.types import Message, Request, Snippet, Stance, UserState

CONF = Path(__file__).parents[2] / "conf"
CHOICES = sorted(path.stem for path in (CONF / "generation").glob("*.yaml"))


@pytest.fixture
def ask() -> Request:
    return Request(id="q", user="ada", messages=(Message("system", "Be kind."), Message("user", "What is tea?")))


@pytest.fixture
def state() -> UserState:
    choice = {"prompt": "What is rain?", "chosen": "Sky tears.", "rejected": "Water."}
    return UserState(
        snippets=(Snippet("I love poems.", "e1", "ada", 2.0), Snippet("rain", "e2", "ada", 1.0, choice)),
        profile="I like poetry.",
        stance=Stance(("warmth", "grade", "formality"), (0.5, 0.0, -1.0)),
        vectors={"request": (1.0, 0.0)},
        history=((0.6, 0.8), (1.0, 0.0)),
    )


@pytest.fixture
def spec() -> PolicySpec:
    names = ("warmth", "grade", "formality")
    return PolicySpec(
        aligned=(("dpo", 1.0), ("mine", 1.0)),
        own=(("mine", 1.0),),
        features={n: ((f"pad_{n}", 1.0),) for n in names},
        vectors={n: ((f"bipo_{n}", 1.0),) for n in names},
        heads=("value", "bradley_terry", "lore", "vas"),
        raters={"bradley_terry": Rater(), "lore": Rater(), "vas": Rater((), names)},
    )


@cache
def values(choice: str) -> dict[str, Any]:
    prompts = OmegaConf.load(CONF / "config.yaml").prompts
    node = OmegaConf.create({"prompts": prompts, "part": OmegaConf.load(CONF / f"generation/{choice}.yaml")})
    return cast(dict[str, Any], OmegaConf.to_container(node.part, resolve=True))


def shipped(choice: str, **changes: Any) -> Any:
    """The part of conf/generation/<choice>.yaml, with some values changed."""
    return build({**values(choice), **changes})


@pytest.fixture(scope="session")
def make() -> Any:
    return shipped


@pytest.fixture(scope="session", params=CHOICES)
def choice(request: pytest.FixtureRequest) -> str:
    return str(request.param)
