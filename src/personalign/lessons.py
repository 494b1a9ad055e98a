"""Where a trained stage is kept: by the content of what it learns from, so that equal lessons are learned once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from personalign.runtime.files import content_hash
from personalign.system import System


def lesson_folders(system: System) -> dict[str, Path]:
    """`<runs>/policies/<stage>-<hash>` of each stage, in their order.

    The hash covers the base model and its precision, the seed, this and the earlier stages, and the training pairs
    with the prompts that generation renders for them. Rows of a sweep that train the same policy (conditioned DPO,
    and PAD on top of it) so share it, and a row finds again what an interrupted one had learned.
    """
    if not system.stages:
        return {}
    cfg = system.cfg
    model = OmegaConf.to_container(cfg.model, resolve=True)
    pairs = [
        ([asdict(m) for m in system.render(p.request)], p.request.user, p.chosen, p.rejected, dict(p.labels))
        for p in system.data.pairs("train")
    ]
    folders = {}
    so_far: list[object] = [model, cfg.precision, cfg.seed, content_hash(pairs)]
    for name, node in cfg.alignment.items():
        so_far.append([name, OmegaConf.to_container(node, resolve=True)])
        folders[name] = Path(cfg.paths.runs).expanduser() / "policies" / f"{name}-{content_hash(so_far)[:16]}"
    return folders
