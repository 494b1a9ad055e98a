"""Whether a composition is legal: its values fit, and every need is provided earlier on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from personalign.composition.parts import catalogue, stamp
from personalign.composition.schema import check_part, check_values, nodes, slots, strength
from personalign.composition.way import LESSONS, MEMORY, Step, known, providers, steps_of, unmet
from personalign.contracts import UserError

WEIGHTS = "model.weights"
HEADS = "policy.heads."
TRAINER_KEYS = {"strategy", "devices", "num_nodes", "zero_stage"}


class IllegalComposition(UserError):
    """The parts do not fit one another, though each is well."""


def problems(cfg: DictConfig | Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a resolved composition, one line each; empty when it may run."""
    tree = cast(dict[str, Any], OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else dict(cfg))
    found = check_values(tree)[0]
    for place, node in nodes(tree).items():
        found += check_part(place, node)[0]
    return [*found, *illegal(tree)]


def illegal(tree: Mapping[str, Any]) -> list[str]:
    """The needs that nothing earlier on the way provides, each with the choices that would."""
    steps = steps_of(tree)
    lacking = unmet(steps, tree.get("source") is not None or has_lessons(tree))
    return [
        *_devices(tree),
        *_rounds(tree, steps),
        *_tuning(tree),
        *_data(tree),
        *_model(tree, steps),
        *_twice(steps),
        *lacking,
        *(line for line in _elsewhere(tree) if line not in lacking),
    ]


def has_lessons(tree: Mapping[str, Any]) -> bool:
    """Whether training, if there is any, has data of its own; runs of before it have no such key."""
    node = tree.get(LESSONS)
    return isinstance(node, Mapping) and node.get("_target_") is not None and bool(tree.get("alignment"))


def lessons(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A composition with its training data in place of its data: where its stages learn, if it `has_lessons`."""
    choices = {**(tree.get("choices") or {}), "data": (tree.get("choices") or {}).get(LESSONS), LESSONS: "none"}
    return {**tree, "data": tree[LESSONS], LESSONS: {"_target_": None}, "choices": choices}


def _elsewhere(tree: Mapping[str, Any]) -> list[str]:
    """What is lacking where training has data of its own, with the advice to take other data there."""
    if tree.get("source") is not None or not has_lessons(tree):
        return []
    return [line.replace("use data=", f"use data@{LESSONS}=") for line in unmet(steps_of(lessons(tree)), False)]


def _data(tree: Mapping[str, Any]) -> list[str]:
    """Somebody asks."""
    node = tree.get("data")
    if not isinstance(node, Mapping) or node.get("_target_", "") is not None:
        return []
    others = [part.choice for part in known(stamp()) if part.group == "data" and part.target]
    return [f"data=none needs somebody who asks: use data={'|'.join(others)}"]


def _rounds(tree: Mapping[str, Any], steps: list[Step]) -> list[str]:
    """Rounds need somebody who answers, a way to choose what is asked, and a memory that weighs what was said."""
    rounds, choices = tree.get("rounds"), tree.get("choices") or {}
    if not isinstance(rounds, int) or rounds < 1:
        return []
    found = []
    for key in ("feedback", "query"):
        if choices.get(key) in (None, "none"):
            others = [part.choice for part in catalogue(strict=False) if part.group == key and part.choice != "none"]
            found.append(f"rounds={rounds} needs {key}: use {key}={'|'.join(others)}, or rounds=0")
    # A query that lacks the posterior says so itself.
    if not any("state.posterior" in (*seen.provides, *seen.needs) for _, _, seen in steps):
        found.append(f"rounds={rounds} needs state.posterior: {' or '.join(providers('query', 'state.posterior'))}")
    return found


def _tuning(tree: Mapping[str, Any]) -> list[str]:
    """What is tuned needs a strength, and somebody who says which is best."""
    tune, choices = tree.get("tune"), tree.get("choices") or {}
    if not isinstance(tune, Mapping) or not tune.get("strengths"):
        return []
    found = []
    if not strength(tree.get("generation")):
        able = [part.choice for part in known(stamp()) if part.group == "generation" and part.strength]
        found.append(
            f"tune.strengths: generation={choices.get('generation')} has no strength to tune: set it to null, or use "
            f"generation={'|'.join(able)}"
        )
    by = str(tune.get("by"))
    judge = tree.get(by)
    if by in slots() and not (isinstance(judge, Mapping) and judge.get("_target_")):
        found.append(f"tune.by={by} needs reward.{by}: choose reward@{by}")
    return found


def _model(tree: Mapping[str, Any], steps: list[Step]) -> list[str]:
    """Somebody answers; where the model is elsewhere nothing is trained, guided or counted in its tokens."""
    node, key = tree.get("model"), "model@guide_model"
    if isinstance(node, Mapping) and node.get("_target_", "") is None:
        return [f"model=none: nobody would answer: {' or '.join(providers(MEMORY, 'model'))}"]
    far = {slot: name for slot, name, seen in steps if "model" in seen.provides and WEIGHTS not in seen.provides}
    found = [f"{key}={far['guide_model']} needs its weights here"] if "guide_model" in far else []
    found += _unbounded(tree, steps)
    if "model" in far:
        lacking = [f"{slots()[slot].key}={name}" for slot, name, _ in steps if slot in ("alignment", "guide_model")]
        lacking += [f"memory_budget={tree['memory_budget']}"] if tree.get("memory_budget") is not None else []
        tune = tree.get("tune")
        if isinstance(tune, Mapping) and tune.get("strengths") and tune.get("perplexity") is not None:
            lacking += [f"tune.perplexity={tune['perplexity']}"]
        remedy = " or ".join(providers(MEMORY, WEIGHTS))
        found += [f"{what} needs {WEIGHTS}, which model={far['model']} has elsewhere: {remedy}" for what in lacking]
    return found


def _unbounded(tree: Mapping[str, Any], steps: list[Step]) -> list[str]:
    """A further model, whose tokens are others, speaks on candidates: generation has some."""
    guides = [name for slot, name, _ in steps if slot == "guide_model"]
    return [
        f"model@guide_model={guide} speaks only on the base's likeliest tokens, of which generation={name} takes all: "
        f"set generation.{seen.candidates} to a number (10, say)"
        for guide in guides
        for slot, name, seen in steps
        if slot == "generation" and seen.candidates and tree["generation"].get(seen.candidates, "") is None
    ]


def _twice(steps: list[Step]) -> list[str]:
    """A head has one name, so that one stage alone may train it."""
    found: list[str] = []
    first: dict[str, str] = {}
    for slot, name, seen in steps:
        for head in (given for given in seen.provides if slot == "alignment" and given.startswith(HEADS)):
            if (other := first.setdefault(head, name)) != name:
                found.append(f"alignment={other} and alignment={name} both train {head}: choose one of them")
    return found


def _devices(tree: Mapping[str, Any]) -> list[str]:
    """Several processes need a strategy; ZeRO needs DeepSpeed."""
    trainer = tree.get("trainer")
    if not isinstance(trainer, Mapping) or not trainer.keys() >= TRAINER_KEYS:
        return []
    strategy, stage = trainer["strategy"], trainer["zero_stage"]
    name = (tree.get("choices") or {}).get("trainer")
    found = []
    if strategy == "none" and (trainer["devices"], trainer["num_nodes"]) != (1, 1):
        trainers = [part for part in catalogue(strict=False) if part.group == "trainer"]
        several = [part.choice for part in trainers if part.defaults["strategy"] != "none"]
        processes = f"devices={trainer['devices']} num_nodes={trainer['num_nodes']}"
        found.append(f"{processes}: trainer={name} is one process: use trainer={'|'.join(several)}")
    if (strategy == "deepspeed") != (stage is not None):
        found.append(f"trainer.zero_stage={stage} does not go with trainer.strategy={strategy}")
    return found
