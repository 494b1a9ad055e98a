"""A policy that has everything a plan may name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import reference as brute
import torch
import vocabularies
from torch import Tensor, nn

from personalign.plans import Rater
from personalign.policy.features import Reader
from personalign.policy.history_tokens import HistoryTokens
from personalign.policy.loading import Tiny
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import BradleyTerryHead, LoReHead, ValueHead
from personalign.policy.soft import SoftHead

DIMENSIONS = ("warmth", "grade", "formality")


class Known(SoftHead):
    """Two vectors for everybody."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.tokens, self.vectors = 2, nn.Parameter(vectors.clone())

    def forward(self, asked: Sequence[tuple[str, ...]]) -> Tensor:
        return self.vectors.expand(len(asked), -1, -1)


def furnish(policy: Policy) -> Policy:
    """Give it a feature a dimension, `dpo` for all and `mine` for ada alone, `mellow` of the kind of `warmth`, all of
    them strong and random; a value head, one that makes soft tokens, three that rate; a steering vector a dimension.
    Many tokens end an answer."""
    draw = torch.Generator().manual_seed(5)
    for number, name in enumerate(("dpo", "mine", *DIMENSIONS)):
        targets = (("q_proj", "v_proj", "down_proj"), ("k_proj", "gate_proj"))[number % 2]
        for weights in policy.add_adapter(name, LoRAConfig(4, 8, 0.0, targets, (1,) if number > 2 else None)):
            nn.init.normal_(weights, std=0.15, generator=draw)
    for name in DIMENSIONS:
        nn.init.normal_(policy.add_vector(f"to_{name}", 1).vector, std=0.5, generator=draw)
    other = torch.Generator().manual_seed(6)
    for weights in policy.add_adapter("mellow", policy.configs["warmth"]):
        nn.init.normal_(weights, std=0.15, generator=other)
    policy.heads["value"] = nn.Linear(32, 32, bias=False)
    nn.init.normal_(policy.heads["value"].weight, std=0.2, generator=draw)
    policy.heads["soft_tokens"] = Known(policy.embedding.weight.detach()[[40, 99]])
    policy.heads["bradley_terry"] = BradleyTerryHead(32, Reader((("dpo", 1.0),), "mean", 512, 256))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        policy.heads["lore"] = LoReHead(32, Reader((), "last", 512, 256), ("ada", "cy"), 3)
    policy.heads["vas"] = ValueHead(32, Reader((), "last", 512, 256), DIMENSIONS)
    for head in (policy.heads[name] for name in ("bradley_terry", "lore", "vas")):
        head.standardise(torch.randn(20, 32, generator=draw))  # type: ignore[operator]
        for weights in head.parameters():
            nn.init.normal_(weights, generator=draw)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        policy.heads["history"] = HistoryTokens("attention", 2, 16, 2, policy.embedding.weight.detach()[[7]], 0.5)
    features = {name: ((name, 1.0),) for name in DIMENSIONS}
    vectors = {name: ((f"to_{name}", 1.0),) for name in DIMENSIONS}
    heads = ("value", "soft_tokens", "history", "bradley_terry", "lore", "vas")
    raters = {"bradley_terry": Rater((("dpo", 1.0),)), "lore": Rater(), "vas": Rater((), DIMENSIONS)}
    policy.spec = replace(policy.spec, aligned=(("dpo", 1.0),), features=features, vectors=vectors, heads=heads)
    policy.spec = replace(policy.spec, raters=raters)
    policy.user_deltas = {"ada": (("mine", 1.0),)}
    policy.stop_ids = tuple(range(2, 250, 9))
    return policy


def bare(cache: Path, seed: int) -> Policy:
    model = Tiny(hidden=32, layers=2, heads=4, kv_heads=2, context=1024, seed=seed)
    policy: Policy = model.build(cache, "fp32")
    return policy


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A tiny policy with everything (see `furnish`). Tests leave it as it is."""
    return furnish(bare(tmp_path_factory.mktemp("cache"), 0))


@pytest.fixture(scope="module")
def twin(furnished: Policy) -> Policy:
    """The same in float64, for the uncached loop."""
    return brute.exact(furnished)


@pytest.fixture(scope="module")
def hosting(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """The same beside a further model, `guide`, that has as much, and the same tokens under other ids."""
    cache = tmp_path_factory.mktemp("cache")
    policy = bare(cache, 0)
    policy.add_guest("guide", furnish(vocabularies.permuted(bare(cache, 1), seed=2)))
    return furnish(policy)


@pytest.fixture(scope="module")
def host_twin(hosting: Policy) -> Policy:
    """That in float64."""
    return brute.exact(hosting)
