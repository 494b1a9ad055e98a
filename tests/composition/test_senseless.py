"""Values of the shipped parts, and of all else, that make no sense: refused, each by its type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from personalign.composition.compose import assemble
from personalign.composition.composer import Composer
from personalign.composition.layers import from_overrides
from personalign.composition.parts import PartView, catalogue
from personalign.composition.schema import check, check_values, slots
from personalign.composition.sweeps import read
from personalign.contracts import UserError

# A key, what is refused at its end, and a value near it that makes sense.
ENDS = [
    ("sampling.top_p", 0, 1e-3),
    ("data.top_p", 0.0, 1.0),
    ("alignment.cope.top_p", 0.0, 1.0),
    ("alignment.dpo.dropout", 1.0, 0.99),
    ("alignment.dpo.depth", 0.0, 0.01),
    ("alignment.rloo.depth", 0.0, 0.01),
    ("alignment.soft_tokens.depth", 0.0, 0.01),
    ("alignment.soft_tokens.dropout", 1.0, 0.99),
    ("evaluation.level", 1.0, 0.999),
    ("evaluation.level", 0.0, 0.001),
    ("guide.beta", 0.0, 0.01),
    ("guide.beta", -0.1, 0.01),
]
CHOICES = ("data=exact_users", "alignment=[dpo,rloo,user_adapter,cope,soft_tokens]", "reward@guide=implicit")
# Of which infinity, too, makes sense.
BOUNDS = {"generation.threshold", "boundary.floors", "evaluation.floors"}
COMPOSED = Composer()
PARTS = [part for part in catalogue() if part.target]


def composed(*words: str) -> DictConfig:
    return assemble([], from_overrides([*CHOICES, *words]), COMPOSED)


def refusal(*words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        composed(*words)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(("key", "refused", "taken"), ENDS, ids=[key for key, *_ in ENDS])
def test_an_end_that_makes_no_sense_is_refused(key: str, refused: float, taken: float) -> None:
    composed(f"{key}={taken}")
    (line,) = refusal(f"{key}={refused}")
    assert line.startswith(f"{key}={refused}: must be ")


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.group}/{part.choice}")
def test_a_part_takes_finite_numbers_alone_unless_they_are_bounds(part: PartView) -> None:
    for key, annotation in part.params.items():
        if f"{part.group}.{key}" == "data.model":
            continue  # the model's own keys, whatever they are: ${model}
        for odd in (math.nan,) if f"{part.group}.{key}" in BOUNDS else (math.nan, math.inf, -math.inf):
            for shape in (odd, [odd], {"a": odd}, {"a": {"a": odd}}):
                with pytest.raises(ValidationError):
                    check(annotation, shape)


def test_a_bound_may_be_infinite() -> None:
    words = (
        "memory=statement",
        "generation=rejection",
        "generation.threshold=inf",
        "evaluation.floors.harmlessness=-inf",
    )
    cfg = composed(*words)
    assert (cfg.generation.threshold, cfg.evaluation.floors.harmlessness) == (math.inf, -math.inf)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_all_that_is_no_part_takes_finite_numbers_alone(odd: float) -> None:
    for place in places({key: node for key, node in plain().items() if key not in slots()}):
        tree = node = plain()
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = odd
        assert any(line.startswith(f"{'.'.join(place)}=") for line in check_values(tree)[0]), place


def plain() -> dict[str, Any]:
    return dict(OmegaConf.to_container(composed()))  # type: ignore[arg-type]


def places(tree: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from places(value, (*above, str(key)))
        else:
            yield (*above, str(key))


def test_ratings_are_measured_from_and_in_what_makes_sense() -> None:
    keys = ("ratings", "truth", "memory.stance_inferred")
    for setting, said in (("center.warmth=NaN", "a finite number"), ("scale.warmth=0", "greater than 0")):
        lines = refusal("memory=stance_inferred", f"ratings.{setting}")
        assert sorted(lines) == sorted(f"{key}.{setting}: must be {said}" for key in keys)


def test_what_is_not_finite_is_told_in_one_line_of_each_key() -> None:
    assert refusal("sampling.temperature=inf") == ["sampling.temperature=Infinity: must be a finite number"]
    assert refusal("data.noise=inf") == ["data.noise=Infinity: must be a finite number"]
    assert refusal("tune.strengths=[1,nan]", "generation=cos", "memory=statement")[0].startswith("tune.strengths.1=NaN")


def test_a_seed_is_one_that_torch_takes(tmp_path: Path) -> None:
    seeds = [part.params[key] for part in PARTS for key in part.params if key.endswith("seed")]
    assert len(seeds) >= 6
    for annotation in seeds:
        assert check(annotation, 2**64 - 1) == 2**64 - 1
        for odd in (-1, 2**64):
            with pytest.raises(ValidationError):
                check(annotation, odd)
    torch.Generator().manual_seed(composed(f"seed={2**64 - 1}").seed)
    assert refusal(f"seed={2**64}")[0] == f"seed={2**64}: must be at most {2**64 - 1}"
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"seeds: [0, {2**64}]\n")
    with pytest.raises(UserError, match=rf"sweep\.yaml: seeds\.1={2**64}: must be at most {2**64 - 1}$"):
        read(sweep)


@pytest.mark.parametrize("stage", ["dpo", "rloo", "soft_tokens", "user_adapter"])
def test_adapters_lie_in_something(stage: str) -> None:
    key = f"alignment.{stage}.targets"
    assert refusal(f"{key}=[]") == [f"{key}=[]: must be a list with something in it"]
    assert refusal(f"{key}=['']") == [f'{key}.0="": must be text with something in it']


def test_a_model_has_a_name() -> None:
    said = 'model.name="": must be text with something in it'
    assert refusal("model=hf", "model.name=''") == [said]
    assert refusal("model@guide_model=hf", "guide_model.name=''", "generation=pad")[0] == f"guide_{said}"
