"""Every choice beside every choice of a neighbouring part: what the rule calls legal runs, and its advice leads on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from personalign import Experiment
from personalign.composition.compose import assemble
from personalign.composition.composer import Composer
from personalign.composition.home import choices, homes
from personalign.composition.layers import Choice, from_overrides
from personalign.composition.layers import chosen as chosen_of
from personalign.composition.parts import groups
from personalign.composition.validate import illegal

# Parts that hand something to one another.
NEIGHBOURS = (
    ("memory", "alignment"),
    ("memory", "generation"),
    ("alignment", "generation"),
    ("alignment", "reward@guide"),
    ("memory", "reward@guide"),
    ("reward@guide", "generation"),
)
# They read a server or a model that is not at hand in every test run.
ELSEWHERE = {"judge", "judge_pairwise", "classifier", "dense"}
SMALL = ["debug=fast", "model=tiny", "precision=fp32", "data.pool=shipped", "data.users=4", "requests.limit=1"]
# What some choices must be told besides.
ALL = "[length,grade,warmth,formality,concreteness,structure,address,caution]"
TOLD = {
    ("alignment", "ric"): f"alignment.ric.dimensions={ALL}",
    ("generation", "ric"): f"generation.dimensions={ALL}",
    ("memory", "stance_inferred"): f"memory.stance_inferred.dimensions={ALL}",
}
ADVICE = re.compile(r"(?:add|use) (\S+?)=([\w|]+)")
DEEP = 5

Chosen = dict[str, tuple[str, ...]]
Pair = tuple[tuple[str, str], tuple[str, str]]


@cache
def _composed() -> Composer:
    return Composer()


def words(chosen: Chosen) -> list[str]:
    made = [
        f"{key}=[{','.join(names)}]" if groups()[key].many else f"{key}={names[0]}" for key, names in chosen.items()
    ]
    told = [TOLD[key, name] for key, names in chosen.items() for name in names if (key, name) in TOLD]
    # A letter is a token here.
    long = [f"alignment.{name}.max_prompt=4096" for name in chosen.get("alignment", ())]
    return [*SMALL, *made, *told, *long]


def legal(chosen: Chosen, fixed: Pair, deep: int = DEEP) -> Chosen | None:
    """The composition with what its messages advise, followed until it is legal; None where no advice helps."""
    said = complaint(tuple(chosen.items()))
    if said is None:
        return chosen
    for key, names in ADVICE.findall(said) if deep else []:
        for name in names.split("|"):
            taken = key == "data" or (not groups()[key].many and key in dict(fixed))
            if taken or name in ELSEWHERE or name in chosen.get(key, ()):
                continue
            # What is advised comes first: it has to stand before those that need it.
            more = (name, *chosen.get(key, ())) if groups()[key].many else (name,)
            if found := legal({**chosen, key: more}, fixed, deep - 1):
                return found
    return None


@cache
def complaint(chosen: tuple[tuple[str, tuple[str, ...]], ...]) -> str | None:
    """The first thing that is illegal in a composition; None for a legal one."""
    picked = {**small(), **{key: names if groups()[key].many else names[0] for key, names in chosen}}
    tree = {**_composed()(homes(), tuple(picked.items()))}
    tree["trainer"] = {**tree["trainer"], "devices": 1}  # not yet resolved
    tree["choices"] = {groups()[key].slot: value for key, value in picked.items()}
    return next(iter(illegal(tree)), None)


@cache
def small() -> dict[str, Choice]:
    return chosen_of([from_overrides(SMALL)])


def pairs() -> Iterator[Pair]:
    for first, second in NEIGHBOURS:
        for pair in product(names(first), names(second)):
            yield (first, pair[0]), (second, pair[1])


def names(key: str) -> list[str]:
    return [name for name in choices(groups()[key].folder) if name not in {"none", *ELSEWHERE}]


@cache
def found() -> dict[Pair, Chosen]:
    """The legal pairs, each with a composition that holds it."""
    each = {pair: legal({key: (name,) for key, name in pair}, pair) for pair in pairs()}
    return {pair: chosen for pair, chosen in each.items() if chosen is not None}


def covering() -> dict[tuple[str, ...], Chosen]:
    """Fewer compositions that hold all legal pairs between them: those that another one holds are left out."""
    kept: list[tuple[set[tuple[str, str]], Chosen]] = []
    for chosen in sorted(found().values(), key=lambda one: -sum(map(len, one.values()))):
        parts = {(key, name) for key, each in chosen.items() for name in each}
        if not any(parts <= other for other, _ in kept):
            kept.append((parts, chosen))
    return {tuple(words(chosen)[len(SMALL) :]): chosen for _, chosen in kept}


SOME = 8
PARTS = 24


def test_some_pairs_run(tmp_path: Path) -> None:
    """The first legal one from some places on, at even distances; the long tests run all."""
    each = list(pairs())
    assert len(each) == 2289
    for start in range(0, len(each), len(each) // SOME):
        chosen = next(filter(None, (legal({key: (name,) for key, name in pair}, pair) for pair in each[start:])))
        finite(words(chosen)[len(SMALL) :], tmp_path)


@pytest.mark.slow
def test_the_legal_pairs_are_counted() -> None:
    assert (len(found()), len(covering())) == (2108, 1344)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_legal_pair_runs(part: int, tmp_path: Path) -> None:
    """A part of the compositions that hold them all; sorted, so that those of a part share what they train."""
    lines = sorted(covering())
    failed = {}
    for line in lines[part * len(lines) // PARTS : (part + 1) * len(lines) // PARTS]:
        try:
            finite(line, tmp_path)
        except Exception as error:
            failed[" ".join(line)] = repr(error)
    assert not failed, "\n".join(f"{line}: {error}" for line, error in failed.items())


def finite(line: Sequence[str], folder: Path) -> None:
    """Run it on a tiny random model: it ends, and its figures are numbers."""
    config = assemble([], from_overrides([*SMALL, *line, f"paths.runs={folder}"]), _composed())
    record = Experiment(config).run()
    assert record["metrics"] and all(math.isfinite(figure["value"]) for figure in record["metrics"].values()), line
