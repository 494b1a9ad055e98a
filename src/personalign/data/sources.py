"""Finds the files of a published data set: a file, a folder, or a data set on the Hugging Face hub."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from os.path import expanduser
from pathlib import Path

from personalign.contracts import UserError
from personalign.data.readers import nearest, siblings

SUFFIXES = (".json", ".jsonl")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_files(path: str, files: list[str] | None, *, on_hub: str, remedy: str) -> list[Path]:
    """The data files that `path` means: a file, a folder's .json and .jsonl files, or a hub data set's.

    `files` keeps those of these names (the ending may be left out). `on_hub` is the pattern that is fetched
    from a hub data set when `files` is null. Raises UserError when something is missing, with `remedy`.
    """
    found = _found(path, files, on_hub, remedy)
    names = [p.name for p in found]
    for name in files or ():
        if not any(name in (p.name, p.stem) for p in found):
            raise UserError(f"data.files: {path} holds no {name!r}{nearest(name, names)}; {remedy}")
    chosen = [p for p in found if files is None or p.name in files or p.stem in files]
    if not chosen:
        raise UserError(f"data.path: {path} holds no .json or .jsonl file; {remedy}")
    return chosen


def _found(path: str, files: list[str] | None, on_hub: str, remedy: str) -> list[Path]:
    try:
        local = Path(expanduser(path))
        if local.is_file():
            return [local]
        if local.is_dir():
            return sorted(p for p in local.iterdir() if p.suffix in SUFFIXES)
        if HUB_NAME.fullmatch(path) and not path.endswith(SUFFIXES) and not local.parent.is_dir():
            return _fetched(path, [on_hub] if files is None else [f"*{name}*" for name in files], remedy)
    except OSError as error:  # a name too long, a folder that may not be read
        raise UserError(f"data.path: cannot read {path[:100]!r}: {error.strerror}; {remedy}") from error
    near = nearest(local.name, siblings(local), few=0)
    raise UserError(f"data.path: no file or folder {path!r}{near}; {remedy}")


def _fetched(name: str, patterns: list[str], remedy: str) -> list[Path]:
    from huggingface_hub import snapshot_download

    try:
        root = Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the hub's client raises those of several HTTP libraries
        why = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"data.path: {name!r} is no local file or folder, and cannot be fetched from the hub "
            f"({type(error).__name__}: {why}); check the name and the network, or {remedy}"
        ) from error
    inside = [p for p in root.rglob("*") if p.suffix in SUFFIXES]
    return sorted(p for p in inside if any(fnmatch(p.relative_to(root).as_posix(), x) for x in patterns))
