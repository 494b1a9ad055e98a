"""The operator that DeepSpeed builds before it runs on CPU cores: once a machine, by one process, or a plain reason."""

from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

from personalign.contracts import UserError
from personalign.runtime.doctor import compiler
from personalign.runtime.files import make_folder, plain_errors
from personalign.runtime.progress import track


def require_deepspeed(accelerator: str) -> None:
    """Raise UserError where DeepSpeed is missing, or what it builds with on CPU cores."""
    if importlib.util.find_spec("deepspeed") is None:
        other = "ddp_cpu" if accelerator == "cpu" else "ddp"
        raise UserError(f"DeepSpeed is not installed: `pip install deepspeed` (Linux), or use trainer={other}")
    if accelerator == "cpu":
        require_compiler()


def require_compiler() -> None:
    """Raise UserError where DeepSpeed could not build what it needs on CPU cores."""
    found = compiler()
    if not found.ok:
        raise UserError(
            f"DeepSpeed builds an operator first, but there is {found.value}: {found.remedy}, or use trainer=ddp_cpu"
        )


def build(cache: Path) -> None:
    """Build DeepSpeed's one operator for CPU cores, or load it where that was done; once a process, before use.

    Raises UserError without a compiler or where it fails.
    """
    require_compiler()
    os.environ["DS_ACCELERATOR"] = "cpu"
    tools = str(Path(sys.executable).parent)  # where pip put ninja
    if tools not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([tools, os.environ["PATH"]])
    folder = make_folder(cache / "operators" / f"torch-{version('torch')}")
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    with _alone(folder), redirect_stdout(io.StringIO()):
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        known = any(folder.rglob("*.so"))
        with nullcontext() if known else track("building DeepSpeed's operator, once", None, "seconds"):
            _load(ShareMemCommBuilder())


def _load(builder: Any) -> None:
    try:
        builder.load(verbose=False)
    except (RuntimeError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"DeepSpeed's operator could not be built: {reason}; trainer=ddp_cpu needs none") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; what the lock of a killed one left is cleared, since torch would wait for it forever."""
    with plain_errors(folder, "write"), open(folder / "build.lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        for left in folder.glob("*/lock"):
            left.unlink(missing_ok=True)
        yield
