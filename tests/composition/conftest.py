"""A small house of its own: a config folder and a module of parts that only these tests know."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

from personalign.composition import compose, home
from personalign.composition.compose import Composed, compose_choices

PARTS = '''
from __future__ import annotations
import sys
from typing import Literal
from personalign.contracts import Part, PositiveInt, Fraction

IMPORTED = True

class Users(Part):
    """Users.

    More of them.
    """
    needs = ("reward.truth",)
    provides = ("pairs", "truth")
    def __init__(self, *, dimensions: list[str], mixture: dict[str, float], share: Fraction) -> None:
        self.dimensions, self.mixture, self.share = dimensions, mixture, share

class Keeper(Part):
    """Keeps."""
    provides = ("state.snippets",)
    node = "memory"
    def __init__(self, *, k: PositiveInt, kinds: tuple[str, ...]) -> None:
        self.k, self.kinds = k, kinds

class Stance(Keeper):
    """Knows the stance."""
    provides = ("state.stance",)
    def __init__(self) -> None:
        pass

class Plain(Part):
    """Answers."""
    def __init__(self) -> None:
        pass

class Steer(Part):
    """Steers."""
    needs = ("state.stance", "policy.features")
    paper = "eq. 1"
    def __init__(self, *, beta: float, mode: Literal["a", "b"] | None, where: str) -> None:
        self.beta, self.mode, self.where = beta, mode, where

class Exact(Part):
    """Scores by the stance."""
    needs = ("state.stance",)
    def __init__(self, *, scale: float) -> None:
        self.scale = scale

class Ratio(Part):
    """Scores by the policy."""
    needs = ("policy.aligned",)
    def __init__(self) -> None:
        pass

class Train(Part):
    """Trains."""
    needs = ("pairs",)
    provides = ("policy.aligned", "policy.features")
    def __init__(self, *, steps: PositiveInt) -> None:
        self.steps = steps

class Head(Part):
    """Trains a head that memory reads."""
    provides = ("policy.heads.stance",)
    def __init__(self) -> None:
        pass

class Read(Part):
    """Reads the stance with the policy's head."""
    needs = ("policy.heads.stance",)
    provides = ("state.stance",)
    def __init__(self) -> None:
        pass

class Online(Train):
    """Trains on what the guide says."""
    needs = ("reward.guide", "policy.aligned")
    provides = ()
    def __init__(self, *, steps: PositiveInt) -> None:
        self.steps = steps
'''

DEFAULTS = """
- _self_
- data: users
- memory: [none]
- generation: plain
- reward@guide: none
- reward@truth: exact
- alignment: [none]
- trainer: cpu
- logger: none
- scale: cpu
- debug: null
"""

FILES = {
    "data/users": "# Users.\n#   personalign run\n_target_: {m}.Users\ndimensions: [warm, long]\n"
    "mixture: {{warm: 1}}\nshare: 0.5\n",
    "memory/none": "# @package _global_\n# Nothing.\n{{}}\n",
    "memory/keep": "# @package memory.keep\n# Keeps.\n_target_: {m}.Keeper\nk: 2\nkinds: [text]\n",
    "memory/stance": "# @package memory.stance\n_target_: {m}.Stance\n",
    "memory/read": "# @package memory.read\n_target_: {m}.Read\n",
    "generation/plain": "_target_: {m}.Plain\n",
    "generation/steer": "_target_: {m}.Steer\nbeta: 1.0\nmode: a\nwhere: ${{paths.cache}}/x\n",
    "reward/none": "_target_: null\n",
    "reward/exact": "_target_: {m}.Exact\nscale: 1.0\n",
    "reward/ratio": "_target_: {m}.Ratio\n",
    "alignment/none": "# @package _global_\n{{}}\n",
    "alignment/train": "# @package alignment.train\n_target_: {m}.Train\nsteps: 100\n",
    "alignment/head": "# @package alignment.head\n_target_: {m}.Head\n",
    "alignment/online": "# @package alignment.online\n_target_: {m}.Online\nsteps: ???\n",
    "scale/cpu": "# @package _global_\nsampling: {{max_new_tokens: 32}}\n",
    "scale/full": "# @package _global_\nsampling: {{max_new_tokens: 128}}\nalignment: {{train: {{steps: 1000}}}}\n",
    "debug/fast": "# @package _global_\nsampling: {{max_new_tokens: 4}}\n"
    "alignment: {{'*': {{steps: 1}}}}\ngeneration: {{beta: 9.0}}\n",
}

# Groups without parts are typed by the package, so that their files are the shipped ones.
SHIPPED = {"trainer/cpu": "trainer/cpu", "trainer/ddp": "trainer/ddp_cpu", "logger/none": "logger/none"}


def furnish(root: Path) -> None:
    """Write conf/, experiments/, sweeps/ and the module of parts, which nobody imports."""
    module = f"parts_{abs(hash(root)) % 10**8}"
    (root / f"{module}.py").write_text(PARTS)
    for folder in ("conf", "experiments", "sweeps"):
        (root / folder).mkdir()
    conf = home.home() / "conf"
    config = yaml.safe_load((conf / "config.yaml").read_text())
    config |= {"defaults": yaml.safe_load(DEFAULTS), "paths": {"runs": "runs", "cache": "~/cache"}}
    (root / "conf" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    texts = {name: text.format(m=module) for name, text in FILES.items()}
    texts |= {name: (conf / f"{source}.yaml").read_text() for name, source in SHIPPED.items()}
    for name, text in texts.items():
        path = root / "conf" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


@pytest.fixture
def own_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that the test may change."""
    furnish(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(home, "home", lambda: tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Composed]:
    root = tmp_path_factory.mktemp("house")
    furnish(root)
    return root, cache(compose_choices)


@pytest.fixture
def house(shared: tuple[Path, Composed], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that all tests share and none changes; what Hydra made of its choices is kept, to save time."""
    root, composed = shared
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(home, "home", lambda: root)
    monkeypatch.setattr(compose, "compose_choices", composed)
    return root
