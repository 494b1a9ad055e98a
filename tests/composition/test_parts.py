"""The catalogue, and every YAML that ships against its class."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack, get_args, get_origin, get_type_hints

import pytest

from personalign.composition import home
from personalign.composition.compose import assemble, compose
from personalign.composition.composer import Composer
from personalign.composition.layers import chosen, from_file, from_overrides
from personalign.composition.parts import PartView, catalogue, groups, head, load
from personalign.composition.schema import OVERLAYS, check, slots
from personalign.composition.validate import IllegalComposition
from personalign.composition.way import LATE, WAY
from personalign.contracts import Part, UserError

SHIPPED = sorted((home.home() / "conf").glob("*/*.yaml"))
PARTS = [part for part in catalogue() if part.target]
MANDATORY = re.compile(r"^\S+ must be given: set \S+=\.\.\.$")


def of(part: PartView) -> str:
    return f"{part.group}/{part.choice}"


def imported(part: PartView) -> type[Any]:
    assert part.target
    module, _, name = part.target.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    return found


def test_a_view_has_what_yaml_and_class_say(house: Path) -> None:
    views = {of(part): part for part in catalogue()}
    steer, none = views["generation/steer"], views["memory/none"]
    assert (steer.cls_name, steer.doc, steer.paper) == ("Steer", "Steers.", "eq. 1")
    assert steer.needs == ("state.stance", "policy.features")
    assert steer.defaults == {"beta": 1.0, "mode": "a", "where": "${paths.cache}/x"}
    assert list(steer.params) == ["beta", "mode", "where"]
    assert views["data/users"].head == "Users.\npersonalign run"
    assert views["memory/stance"].node == "memory"
    assert (none.target, none.params, none.defaults) == (None, {}, {})


def test_one_unreadable_choice_is_named_or_left_out(own_house: Path) -> None:
    (own_house / "conf" / "generation" / "odd.yaml").write_text("_target_: nowhere.Odd\n")
    with pytest.raises(UserError, match=r"_target_ nowhere\.Odd: no such class"):
        catalogue()
    assert "generation/odd" not in map(of, catalogue(strict=False))


def test_groups_come_from_the_defaults_list() -> None:
    known = groups()
    assert [g.slot for g in known.values() if g.folder == "reward"] == ["guide", "truth", "universal"]
    assert [g.key for g in known.values() if g.many] == ["memory", "alignment"]
    assert set(slots()) == {*WAY, *LATE}


def test_the_catalogue_holds_every_file_that_ships() -> None:
    listed = {of(part) for part in catalogue()}
    assert listed == {f"{path.parent.name}/{path.stem}" for path in SHIPPED}
    assert len(listed) >= 31


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_yaml_says_what_it_is_and_how_it_runs(path: Path) -> None:
    lines = head(path).splitlines()
    assert 2 <= len(lines) <= 5
    assert any("personalign run" in line and re.search(rf"[=,\[]{path.stem}\b", line) for line in lines)
    first = path.read_text().partition("\n")[0]
    group = next(g for g in groups().values() if g.folder == path.parent.name)
    if group.many and path.stem != "none":
        assert first == f"# @package {path.parent.name}.{path.stem}"
    else:
        assert first.startswith("# @package") == (group.many or group.key in OVERLAYS)


@pytest.mark.parametrize("part", PARTS, ids=of)
def test_keys_are_the_arguments_and_values_are_of_their_types(part: PartView) -> None:
    """A YAML need not have shared keys behind those of its own."""
    assert sorted(part.defaults) == sorted(part.params)
    for key, value in part.defaults.items():
        if "${" not in str(value) and value != "???":
            check(part.params[key], value)


@pytest.mark.parametrize("part", PARTS, ids=of)
def test_every_key_is_explained_above_it(part: PartView) -> None:
    """At most four keys share a comment, and the first key does not live off the head comment."""
    since = 0
    for line in home.choices(part.group)[part.choice].read_text().splitlines():
        if line.startswith("#"):
            since = 0
        elif line.startswith("_target_"):
            since = 4
        elif re.match(r"\w", line):
            since += 1
        assert since <= 4, line


@pytest.mark.parametrize("part", PARTS, ids=of)
def test_the_light_view_equals_the_imported_class(part: PartView) -> None:
    cls = imported(part)
    assert issubclass(cls, Part)
    for name in ("needs", "provides", "paper", "node"):
        assert getattr(part, name) == getattr(cls, name)
    for name in ("strength", "candidates"):
        key = getattr(part, name)
        assert key == getattr(cls, name, "") and (not key or key in part.params)
    assert part.doc == (inspect.getdoc(cls) or "").partition("\n")[0]
    assert part.params == dict(keywords(cls))


def keywords(cls: type) -> Iterator[tuple[str, Any]]:
    """The arguments of the imported class with their types, all by name alone and without a default; shared keys are
    in a TypedDict."""
    hints = get_type_hints(cls.__init__, include_extras=True)
    for name, one in inspect.signature(cls).parameters.items():
        assert one.kind in (one.KEYWORD_ONLY, one.VAR_KEYWORD) and one.default is one.empty
        if one.kind is one.VAR_KEYWORD:
            assert get_origin(hints[name]) is Unpack
            yield from get_type_hints(*get_args(hints[name]), include_extras=True).items()
        else:
            yield name, hints[name]


@pytest.mark.parametrize("part", PARTS, ids=of)
def test_a_part_names_its_place_in_the_survey_or_is_none_of_it(part: PartView) -> None:
    assert part.doc
    if part.group in ("memory", "generation", "reward", "alignment"):
        assert part.node and part.paper


def test_every_choice_composes_and_all_is_checked_in_seconds() -> None:
    """Each by itself: its values are right, and what it needs some choice before it provides."""
    start, composed = time.process_time(), 0
    for group in groups().values():
        for name in home.choices(group.folder):
            composed += 1
            try:
                compose([f"{group.key}={name}"])
            except IllegalComposition as error:
                lines = [line for line in str(error).splitlines() if "nothing before it can provide" in line]
                # Truth is there before anything is trained, so that no trained reward can be it.
                assert all(line.startswith("reward@truth=") and " needs policy." in line for line in lines)
            except UserError as error:
                assert all(MANDATORY.match(line) or " needs " in line for line in str(error).splitlines())
    assert composed > 100 and time.process_time() - start < 0.5 * composed  # about .13 on an idle core


def test_what_ships_in_experiments_and_sweeps_composes() -> None:
    """As `validate --all` composes it, each choice by Hydra once."""
    from personalign.composition.sweeps import read

    start, composed = time.process_time(), Composer()
    for path in home.shelf("experiments").values():
        layers = [from_file(path), from_overrides([])]
        composed.expect([chosen(layers)])
        assert assemble(layers[:1], layers[1], composed)
    for path in home.shelf("sweeps").values():
        assert read(path, (), composed).cells
    assert time.process_time() - start < 25


def test_an_overlay_names_only_keys_that_some_choice_takes() -> None:
    """Keys of parts that were not chosen are dropped in silence, so that a typo there must be caught here."""
    takes = {(part.group, key) for part in catalogue() for key in part.params}
    for kind in OVERLAYS:
        for path in home.choices(kind).values():
            for slot, node in load(path).items():
                if slot in slots():
                    inner = list(node.values()) if slots()[slot].many else [node]
                    assert all((slots()[slot].folder, key) in takes for keys in inner for key in keys), path


def test_composing_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys; from personalign.composition.compose import compose; compose(['trainer=ddp_cpu', 'devices=2']);"
        "from personalign.composition.parts import catalogue; from personalign.composition.identity import identity;"
        "catalogue(); print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    start = time.perf_counter()
    names = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert time.perf_counter() - start < 6  # about 1 on an idle core
    assert "hydra" in names
    assert not {"torch", "transformers", "pytorch_lightning", "wandb", "deepspeed", "numpy"} & set(names)
