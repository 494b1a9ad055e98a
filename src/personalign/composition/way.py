"""The way of a user's event through the parts: what each needs, what it gives, and what is lacking."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from personalign.composition.parts import PartView, catalogue, stamp, view
from personalign.composition.schema import nodes, slots
from personalign.composition.source import ClassView
from personalign.contracts import UserError

Step = tuple[str, str, ClassView]

# The way of a user's event. Data, model and the true reward are there together, before anything else. The other
# rewards, and memory that reads the trained policy, are there as soon as their own needs are met. A further model
# needs a generation that lets it speak, and is a guide as it is, before any training. Data that are there for training
# alone are checked in the place of the data that is answered.
TOGETHER = ("data", "model", "truth")
WAY = (
    *TOGETHER,
    "training_data",
    "guide_model",
    "memory",
    "alignment",
    "generation",
    "boundary",
    "feedback",
    "query",
    "evaluation",
)
LATE = ("guide", "universal")
REWARDS = ("truth", *LATE)
MEMORY = "memory"
# Alignment trains on the prompts that generation renders, so what these hold, and how it plans, is there before.
PROMPT = "prompt."
PLANNED = (PROMPT, "plan.")
PLAN = "plan"
GUIDE = "reward.guide"
LESSONS = "training_data"
TRAINED = "policy."


def steps_of(tree: Mapping[str, Any]) -> list[Step]:
    """(slot, choice, class) of every part that is read, in the order of the way, the rewards but the true one last."""
    steps, found = [], nodes(tree)
    for slot in (*WAY, *LATE):
        for place, node in found.items():
            if place.partition(".")[0] != slot or not (isinstance(node, Mapping) and node.get("_target_")):
                continue
            name = place.partition(".")[2] or str((tree.get("choices") or {}).get(slot))
            try:
                steps.append((slot, name, view(node["_target_"])))
            except UserError:
                continue
    return steps


def _gives(slot: str, seen: ClassView | PartView) -> set[str]:
    if slot in ("guide_model", LESSONS):
        return set()
    return {*seen.provides, *([f"reward.{slot}"] if slot in REWARDS else [])}


def _needs(slot: str, seen: ClassView, taught: bool = False) -> list[str]:
    """Under `truth` a reward is given the user's true state, which data provides; under `universal` none. Stages that
    are `taught` elsewhere need here what earlier ones made alone."""
    if slot == LESSONS:
        return []
    if slot == "alignment" and taught:
        return [need for need in seen.needs if need.startswith(TRAINED)]
    if slot == "universal":
        return [need for need in seen.needs if not need.startswith("state.")]
    if slot == "truth":
        needs = [need for need in seen.needs if need != PLAN]
        return list(dict.fromkeys("truth" if need.startswith("state.") else need for need in needs))
    if slot == "guide_model":
        return ["plan.guide_model"]
    return list(seen.needs)


def unmet(steps: list[Step], taught: bool) -> list[str]:
    """What is lacking, a line each; a policy that is `taught` elsewhere learns from the data and the prompts there."""
    waiting = [step for step in steps if step[0] in LATE]
    way = [step for step in steps if step[0] not in LATE]
    given = {
        name for slot, _, seen in way for name in _gives(slot, seen) if slot in TOGETHER or name.startswith(PLANNED)
    }
    lacking: list[tuple[Step, str]] = []
    early: list[str] = []
    for step in way:
        given |= set() if _untrained(way, given) else {PLAN}
        waiting = _join(waiting, given)
        needs = [need for need in _needs(step[0], step[2], taught) if need not in given]
        if told := _early(step, needs, waiting, way, given):
            early += told
            needs.remove(GUIDE)
        if step[0] == MEMORY and needs and all(need.startswith(TRAINED) for need in needs):
            waiting.append(step)
            continue
        lacking += [(step, need) for need in needs]
        given |= _gives(step[0], step[2])
        if step[0] == "guide_model":
            given.add("policy.aligned")
    stuck = _join(waiting, given)
    promised = {name for step in stuck for name in _gives(step[0], step[2])}
    lacking = [(step, need) for step, need in lacking if need not in promised]
    lacking += [(step, need) for step in stuck for need in _needs(step[0], step[2]) if need not in given]
    # Without a plan generation itself lacks something.
    return [*early, *(_line(step, need, steps) for step, need in lacking if need != PLAN)]


def _untrained(way: list[Step], given: set[str]) -> list[str]:
    """What generation's plan is made of and is not trained yet. What a stage trains that itself learns from a guide
    counts as there: no guide could wait for it."""
    there = {name for slot, _, seen in way if slot == "alignment" and GUIDE in seen.needs for name in seen.provides}
    needs = [need for slot, _, seen in way if slot == "generation" for need in seen.needs]
    return [need for need in needs if need.startswith("policy.") and need not in given | there]


def _early(step: Step, needs: list[str], waiting: list[Step], way: list[Step], given: set[str]) -> list[str]:
    """Why a stage learns too early from a guide that reads the plan: it comes before those that train its parts."""
    guides = [name for slot, name, seen in waiting if slot == "guide" and PLAN in seen.needs]
    if step[0] != "alignment" or GUIDE not in needs or not guides or PLAN in given:
        return []
    (generation,) = [name for slot, name, _ in way if slot == "generation"]
    read = f"alignment={step[1]} learns from reward@guide={guides[0]}, which reads the plan of generation={generation}"
    found = []
    for need in _untrained(way, given):
        late = [f"alignment={name}" for slot, name, seen in way if slot == "alignment" and need in seen.provides]
        found += [f"{read} and so needs {need}: put {late[0]} before it"] if late else []
    return found


def _join(waiting: list[Step], given: set[str]) -> list[Step]:
    """Let those whose needs are met add what they give; return the others."""
    for step in waiting:
        if given.issuperset(_needs(step[0], step[2])):
            given |= _gives(step[0], step[2])
            return _join([other for other in waiting if other is not step], given)
    return waiting


def _line(step: Step, need: str, steps: list[Step]) -> str:
    """The unmet need, and the remedy: an order, or the choices that provide it."""
    slot, choice, _ = step
    text = f"{slots()[slot].key}={choice} needs {need}"
    late = [(s, name) for s, name, seen in steps if (s, name) != (slot, choice) and need in _gives(s, seen)]
    names = " and ".join(f"{slots()[s].key}={name}" for s, name in late)
    if late:
        return f"{text}: " + (f"put {names} before it" if late[0][0] == slot else f"{names} comes later")
    remedies = providers(slot, need)
    return f"{text}: {' or '.join(remedies)}" if remedies else f"{text}, which nothing before it can provide"


@lru_cache(maxsize=1)
def known(stamp: object) -> list[PartView]:
    """The catalogue, read once while its files stay the same: a sweep may leave out many cells."""
    return catalogue(strict=False)


def providers(slot: str, need: str) -> list[str]:
    """What to add or use, among the groups that come no later than `slot`, or anywhere if `slot` may wait."""
    order = WAY if slot in (*LATE, MEMORY) else WAY[: max(WAY.index(slot) + 1, len(TOGETHER))]
    order = (*order, "generation") if need.startswith(PLANNED) else order
    able = [g for s, g in slots().items() if s in (*order, *LATE) and (s != slot or g.many)]
    found: dict[str, list[str]] = {}
    for part in known(stamp()):
        for group in able:
            if part.target and part.group == group.folder and need in _gives(group.slot, part):
                verb = f"{'add' if group.many else 'use'} {group.key}="
                found.setdefault(verb, []).append(part.choice)
    return [verb + "|".join(names) for verb, names in found.items()]
