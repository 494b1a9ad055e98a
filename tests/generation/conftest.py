"""Requests, states and policies that the generation tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from personalign.generation.agent import Agent
from personalign.generation.aligner import Aligner, MetaAligner
from personalign.generation.best_of_n import BestOfN, BestOfNPreference
from personalign.generation.context_steering import Amulet, ContextSteering
from personalign.generation.draft_critique_revise import DraftCritiqueRevise
from personalign.generation.icdpo import ICDPO
from personalign.generation.in_context import InContext
from personalign.generation.pad import Pad, PadScalar
from personalign.generation.plain import Plain
from personalign.generation.preference_prompt import PreferencePrompt
from personalign.generation.refined_prompt import RefinedPrompt
from personalign.generation.rejection import Rejection
from personalign.generation.retrieval_prompt import RetrievalPrompt
from personalign.generation.ric import Ric
from personalign.generation.soft_tokens import SoftTokens
from personalign.generation.soup import Soup
from personalign.types import Message, PolicySpec, Request, Snippet, Stance, UserState

CONF = Path(__file__).parents[2] / "conf"
PROMPTED = (Plain, Aligner, MetaAligner, PreferencePrompt, InContext, ICDPO, Rejection, RetrievalPrompt)
AGENTS = (Agent, DraftCritiqueRevise, RefinedPrompt)
PARTS = (*PROMPTED, *AGENTS, BestOfN, BestOfNPreference, ContextSteering, Amulet, Pad, PadScalar, Ric, SoftTokens, Soup)
CLASSES = {c.__name__: c for c in PARTS}
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
    )


@pytest.fixture
def spec() -> PolicySpec:
    names = ("warmth", "grade", "formality")
    return PolicySpec(aligned=(("dpo", 1.0),), features={n: ((f"pad_{n}", 1.0),) for n in names}, heads=("value",))


def shipped(choice: str, **changes: Any) -> Any:
    """The part of conf/generation/<choice>.yaml, with some values changed."""
    prompts = OmegaConf.load(CONF / "config.yaml").prompts
    node = OmegaConf.create({"prompts": prompts, "part": OmegaConf.load(CONF / f"generation/{choice}.yaml")})
    values = OmegaConf.to_container(node.part, resolve=True)
    assert isinstance(values, dict)
    return CLASSES[values.pop("_target_").rpartition(".")[2]](**{**values, **changes})


@pytest.fixture(scope="session")
def make() -> Any:
    return shipped


@pytest.fixture(scope="session", params=CHOICES)
def choice(request: pytest.FixtureRequest) -> str:
    return str(request.param)
