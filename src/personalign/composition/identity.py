"""What names a run: the hash of all that determines its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from personalign.composition.validate import has_lessons
from personalign.runtime.files import sha256
from personalign.store.store import Store

PARTS = ("data", "model", "memory", "generation", "guide", "truth", "universal", "alignment", "feedback", "query")
DETERMINING = (*PARTS, "boundary", "evaluation", "seed", "precision", "sampling", "requests", "rounds")


def identity(cfg: DictConfig) -> str:
    """16 hex digits: equal for compositions whose result is equal, wherever and on whatever they run.

    The order of keys does not count, that of memory's and alignment's choices does. Places below the cache
    folder are read as relative to it.
    """
    tree = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    kept = {key: _plain(tree.get(key), key, str(tree["paths"]["cache"])) for key in DETERMINING}
    if tree["source"] is not None:
        kept["source"] = Path(tree["source"]).name  # a run's folder is named by its own identity
    if (tree.get("guide_model") or {}).get("_target_") is not None:
        kept["guide_model"] = _plain(tree["guide_model"], "", str(tree["paths"]["cache"]))
    if has_lessons(tree):
        node = tree["training_data"]
        kept["training_data"] = [_plain(node, "", str(tree["paths"]["cache"])), _files(node)]
    if tree["memory_budget"] is not None:
        kept["memory_budget"] = tree["memory_budget"]
    if tree["tune"]["strengths"]:
        kept["tune"] = tree["tune"]
    if tree["rounds"]:
        kept["asking"] = tree["asking"]
    if files := _files(tree["data"]):
        kept["files"] = files
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _files(data: Mapping[str, Any]) -> list[str]:
    """Content hashes of the user's own data files: an edited file, or a changed store, is another experiment."""
    path, store = (Path(str(data.get(key) or "")).expanduser() for key in ("path", "store"))
    found = []
    if data.get("path") and path.exists():
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*.json*") if p.is_file())
        found = [sha256(file) for file in files]
    if data.get("store") and store.exists():
        with Store(store) as kept:
            found.append(kept.revision())
    return found


def _plain(value: Any, key: str, cache: str) -> Any:
    if isinstance(value, Mapping):
        items = {k: _plain(v, "", cache) for k, v in value.items()}
        return list(items.items()) if key in ("memory", "alignment") else items
    if isinstance(value, list):
        return [_plain(item, "", cache) for item in value]
    return value.replace(cache, "<cache>", 1) if isinstance(value, str) and value.startswith(cache) else value


def label(cfg: DictConfig) -> str:
    """The row's name in tables: the given one, or its choices from generation to memory and alignment."""
    if cfg.name:
        return str(cfg.name)
    choices = cfg.choices
    parts = [choices.generation, *choices.memory, *choices.alignment]
    return " + ".join(str(part) for part in parts)
