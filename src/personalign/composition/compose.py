"""From choices and values to one checked composition, through Hydra's compose API.

Hydra composes the choices; values are put into that afterwards, each checked, so that every mistake is told
and a grid needs Hydra once for each choice. Precedence, from low to high: a part's YAML,
scale, the experiment file, debug, the command line.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from personalign.composition import home
from personalign.composition.layers import Choice, Layer, Setting, chosen, from_file, from_overrides
from personalign.composition.overlays import overlay
from personalign.composition.parts import groups, load, odd
from personalign.composition.put import put
from personalign.composition.schema import OVERLAYS, check_part, check_values, nodes, slots
from personalign.composition.validate import IllegalComposition, illegal
from personalign.contracts import UserError

Choices = tuple[tuple[str, Choice], ...]
Composed = Callable[[tuple[Path, ...], Choices], dict[str, Any]]


def compose(overrides: Sequence[str] = (), file: str | Path | None = None) -> DictConfig:
    """The composition of an experiment file and overrides in Hydra's grammar: resolved, typed, closed.

    Raises UserError with every problem, one a line; IllegalComposition where parts do not fit one another and
    nothing else is wrong.
    """
    files = [] if file is None else [from_file(home.locate(file, "experiments"))]
    return assemble(files, from_overrides(overrides))


def assemble(files: Sequence[Layer], line: Layer, composed: Composed | None = None) -> DictConfig:
    """The composition of layers, the command line's last; raises as `compose`. Grids share a `Composer`."""
    layers = [*files, line]
    choices = chosen(layers)
    unknown = set().union(*(layer.unknown for layer in layers))
    tree = copy.deepcopy((composed or compose_choices)(home.homes(), tuple(choices.items())))
    problems = [problem for layer in layers for problem in layer.problems]
    for settings in _ordered(tree, files, line, choices):
        problems += [p for setting in settings if setting.path[0] not in unknown for p in put(tree, setting)]
    tree["choices"] = {groups()[key].slot: _listed(value) for key, value in choices.items()}
    resolved, failed = _resolved(tree, problems)
    tree, found = _checked(resolved)
    problems += [line for line in found if not line.startswith(tuple(f"{key}=" for key in failed))]
    unfit = [] if unknown & slots().keys() else illegal(tree)
    if problems:
        raise UserError("\n".join([*problems, *unfit]))
    if unfit:
        raise IllegalComposition("\n".join(unfit))
    config = OmegaConf.create(tree)
    OmegaConf.set_struct(config, True)
    return config


def _listed(value: Choice) -> Any:
    return [name for name in value if name != "none"] if isinstance(value, tuple) else value


def compose_choices(homes: tuple[Path, ...], choices: Choices) -> dict[str, Any]:
    """What Hydra makes of the choices, overlays apart, interpolations unresolved; UserError for a broken YAML."""
    lines = [f"{key}={_text(value)}" for key, value in choices if value is not None and key not in OVERLAYS]
    lines += [f"~{key}" for key in OVERLAYS]
    own = ",".join(f"file://{root / 'conf'}" for root in homes[1:])
    search = [f"hydra.searchpath=[{own}]"] if own else []
    try:
        with initialize_config_dir(str(homes[0] / "conf"), job_name="personalign", version_base="1.3"):
            config = hydra_compose("config", [*lines, *search])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        _name_broken_file(choices)
        raise UserError(f"the chosen files do not compose: {' '.join(str(error).split())}") from None
    tree = cast(dict[str, Any], OmegaConf.to_container(config))
    if any(odd(tree)):
        _name_broken_file(choices)
    return tree


def _text(value: Choice) -> str:
    return f"[{','.join(value)}]" if isinstance(value, tuple) else str(value)


def _name_broken_file(choices: Choices) -> None:
    """Raise the plain message of the file that is missing, cannot be read or holds what is no plain data, if it is one
    of those chosen."""
    for key, value in choices:
        for name in value if isinstance(value, tuple) else [value]:
            known = home.choices(groups()[key].folder)
            if name is not None and name not in known:
                raise UserError(f"{key}={name}: no such choice{home.nearest(name, known)}")
            if name is not None:
                load(known[name])


def _ordered(
    tree: dict[str, Any], files: Sequence[Layer], line: Layer, choices: Mapping[str, Choice]
) -> Iterator[Iterable[Setting]]:
    """All settings, the last word last."""
    yield overlay("scale", choices, tree)
    yield from (layer.settings for layer in files)
    yield overlay("debug", choices, tree)
    yield line.settings


def _resolved(tree: dict[str, Any], problems: list[str]) -> tuple[dict[str, Any], set[str]]:
    """The tree with interpolations replaced and ~ expanded in paths; and the keys where that failed."""
    config = OmegaConf.create(tree)
    try:
        for key, value in config.paths.items():
            config.paths[key] = str(Path(str(value)).expanduser())
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)), set()
    except OmegaConfBaseException:
        failed: set[str] = set()
        return cast(dict[str, Any], _resolve_apart(config, "", problems, failed)), failed


def _resolve_apart(config: Any, place: str, problems: list[str], failed: set[str]) -> Any:
    """Key by key, to name every key at fault; such a key holds null."""
    if not OmegaConf.is_config(config):
        return config
    found: dict[Any, Any] = {}
    for key in config.keys() if OmegaConf.is_dict(config) else range(len(config)):
        where = f"{place}.{key}".strip(".")
        try:
            value = "???" if OmegaConf.is_missing(config, key) else config[key]
            found[key] = _resolve_apart(value, where, problems, failed)
        except OmegaConfBaseException as error:
            found[key] = None
            failed.add(where)
            problems.append(f"{where}: {str(error).splitlines()[0]}")
    return found if OmegaConf.is_dict(config) else list(found.values())


def _checked(tree: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tree with every value as its type, and what is wrong with any."""
    problems, typed = check_values(tree)
    out = {key: typed.get(key, value) for key, value in tree.items()}
    for place, node in nodes(tree).items():
        found, part = check_part(place, node)
        problems += found
        slot, _, choice = place.partition(".")
        if choice:
            out[slot] = {**out[slot], choice: part}
        else:
            out[slot] = part
    return out, problems


def recompose(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A resolved composition under other choices and values: a group that is chosen anew starts from its own file.

    Raises UserError as `compose` does.
    """
    values = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    choices = values.pop("choices")
    anew = {word.split("=", 1)[0].lstrip("+~") for word in overrides}
    defaults: list[dict[str, Any]] = []
    for key, group in groups().items():
        if key in anew or key in OVERLAYS:
            values.pop(group.slot, None)
        else:
            kept = choices.get(group.slot, group.default)  # a run may be older than a group
            defaults.append({f"override /{key}": (kept or ["none"]) if isinstance(kept, list) else kept})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "earlier.yaml"
        file.write_text(yaml.safe_dump({"defaults": defaults, **_untargeted(values)}), encoding="utf-8")
        return compose([*overrides, "scale=cpu", "debug=null"], file)


def _untargeted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Values alone: targets follow from the choices."""
    return {k: _untargeted(v) if isinstance(v, Mapping) else v for k, v in tree.items() if k != "_target_"}
