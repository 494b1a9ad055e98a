"""From a node to the part."""

from __future__ import annotations

from pathlib import Path

import pytest

from personalign.composition.build import build, build_many
from personalign.composition.compose import compose
from personalign.contracts import UserError


def test_a_node_becomes_its_part(house: Path) -> None:
    part = build(compose(["data.mixture.long=2"]).data)
    assert type(part).__name__ == "Users"
    assert (part.dimensions, part.mixture, part.share) == (["warm", "long"], {"warm": 1.0, "long": 2.0}, 0.5)
    assert type(part.mixture) is dict and type(part.dimensions) is list


def test_lists_serve_as_tuples_and_null_targets_as_none(house: Path) -> None:
    cfg = compose(["memory=keep", "memory.keep.kinds=[a,b]"])
    assert build(cfg.memory.keep).kinds == ("a", "b")
    assert build(cfg.guide) is None


def test_a_group_is_built_in_its_order(house: Path) -> None:
    parts = build_many(compose(["memory=[stance,keep]"]).memory)
    assert [type(part).__name__ for part in parts] == ["Stance", "Keeper"]
    assert build_many(compose().memory) == []


def test_a_plain_mapping_is_checked_like_a_composition(house: Path) -> None:
    target = compose(["memory=keep"]).memory.keep._target_
    assert build({"_target_": target, "k": 1, "kinds": []}).k == 1
    with pytest.raises(UserError) as caught:
        build({"_target_": target, "k": 0, "sort": 1})
    assert str(caught.value).splitlines() == [
        f"{target}: sort: no such key; there is k, kinds",
        f"{target}: kinds is missing",
        f"{target}: k=0: must be at least 1",
    ]
