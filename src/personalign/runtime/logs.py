"""Silence what other packages say and a user can do nothing about; errors stay, PERSONALIGN_DEBUG=1 shows all."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "WANDB_SILENT": "true",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
# Each speaks through the logger that is named; setting a level would not last, as they set their own on import.
LOGGERS = (
    "pytorch_lightning",
    "pytorch_lightning.utilities.rank_zero",
    "pytorch_lightning.strategies.deepspeed",
    "lightning_fabric.utilities.rank_zero",
    "lightning_fabric.utilities.seed",
    "lightning_fabric.utilities.distributed",
    "lightning_utilities.core.rank_zero",
    "DeepSpeed",
    "deepspeed",
    "accelerate",
    "torch.distributed.run",
    "torch.distributed.nn.jit.instantiator",
    "torch.utils.cpp_extension",
    "wandb",
    "filelock",
)
PACKAGES = (
    r"(transformers|huggingface_hub|accelerate|peft|pytorch_lightning|lightning_\w+|torch|torchmetrics|deepspeed|wandb)"
)


def debugging() -> bool:
    """Whether PERSONALIGN_DEBUG asks for everything to be shown."""
    return os.environ.get("PERSONALIGN_DEBUG", "") not in ("", "0")


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def quiet(*, offline: bool = False) -> None:
    """Keep third-party warnings, notes and bars from the screen; call it before their import, again is harmless.

    A variable that the user has set is kept. `offline` also forbids the model hub's network.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not gpu_present():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if debugging():
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_errors_only)
    warnings.filterwarnings("ignore", module=PACKAGES + r"(\.|$)")


def gpu_present() -> bool:
    """Whether the system shows an accelerator's device file (NVIDIA, AMD, WSL), found without torch."""
    return any(any(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "kfd", "dxg"))
