"""Logs: what others say is kept from the screen, errors and the user's own settings are not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SPEAK = """
import logging, warnings
from personalign.runtime.logs import quiet
quiet()
quiet()
logging.getLogger("pytorch_lightning").error("ERROR of lightning")
logging.getLogger("DeepSpeed").warning("warning of deepspeed")
logging.getLogger("mine").warning("WARNING of my logger")
for package in ("torch", "transformers.models.llama"):
    warnings.warn_explicit("warning of " + package, UserWarning, "file", 1, module=package)
warnings.warn_explicit("WARNING of the user's own", UserWarning, "file", 1, module="torchlike")
"""
IMPORTS = """
import pytorch_lightning.utilities.rank_zero as lightning
from transformers.utils import logging as transformers_logging
lightning.rank_zero_info("note of lightning")
exec("warn('warning of lightning')", {"__name__": "pytorch_lightning.trainer", "warn": lightning.rank_zero_warn})
transformers_logging.get_logger("transformers.x").warning("warning of transformers")
transformers_logging.get_logger("transformers.x").error("ERROR of transformers")
from tqdm import tqdm
list(tqdm(range(3)))
"""
SHOW = "import os; from personalign.runtime.logs import quiet; quiet({}); print({{k: os.environ.get(k) for k in {}}})"


def said(script: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PERSONALIGN_DEBUG", "TRANSFORMERS", "TQDM"))}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def test_only_what_matters_is_heard() -> None:
    heard = said(SPEAK + IMPORTS)
    assert "note of" not in heard and "warning of" not in heard and "it/s" not in heard
    for kept in ("ERROR of transformers", "ERROR of lightning", "WARNING of the user's own", "WARNING of my logger"):
        assert kept in heard


def test_debug_lets_everything_through() -> None:
    heard = said(SPEAK, PERSONALIGN_DEBUG="1")
    for word in ("warning of deepspeed", "warning of torch", "warning of transformers.models.llama"):
        assert word in heard


@pytest.mark.parametrize(("arguments", "offline"), [("", None), ("offline=True", "1")])
def test_settings_of_the_user_win(arguments: str, offline: str | None) -> None:
    names = ["TRANSFORMERS_VERBOSITY", "WANDB_SILENT", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE"]
    heard = said(SHOW.format(arguments, names), TRANSFORMERS_VERBOSITY="info")
    assert heard.strip() == str(
        {"TRANSFORMERS_VERBOSITY": "info", "WANDB_SILENT": "true", "TOKENIZERS_PARALLELISM": "false"}
        | {"HF_HUB_OFFLINE": offline}
    )
