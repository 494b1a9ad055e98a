"""The base policy of a composition, which stays loaded for the next one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from personalign.composition.build import build
from personalign.contracts import UserError
from personalign.policy.policy import Policy

_loaded: dict[str, Policy] = {}


def load_policy(cfg: DictConfig) -> Policy:
    """The base policy of a composition; the last one stays loaded, so that a sweep reads its model once."""
    model = OmegaConf.to_container(cfg.model, resolve=True)
    further = _further_model(cfg)
    key = str((model, further, cfg.precision, cfg.paths.cache))
    if key not in _loaded:
        _loaded.clear()
        cache = Path(cfg.paths.cache).expanduser()
        _loaded[key] = build(cfg.model).build(cache, cfg.precision)
        if further is not None:
            _loaded[key].add_guest("guide", build(further).build(cache, cfg.precision))
    policy = _loaded[key]
    policy.reset()
    for one in (policy, policy.learner):
        one.model.to(_device(cfg.trainer.accelerator))
    return policy


def _further_model(cfg: DictConfig) -> dict[str, Any] | None:
    """What `guide_model` names, if anything; runs of before it have no such key."""
    node = cfg.get("guide_model")
    return None if node is None or node._target_ is None else cast(dict[str, Any], OmegaConf.to_container(node))


def _device(accelerator: str) -> torch.device:
    """Where this process computes. Raises UserError when a GPU is asked for and there is none."""
    if accelerator == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={accelerator} needs a GPU that torch can use, and there is none: trainer=cpu"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
