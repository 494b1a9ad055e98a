"""TRL's DPOTrainer on the pairs, the model and the first LoRA weights of our side."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _shared as bench  # before torch: it settles the threads
import torch
from torch import Tensor

from personalign.alignment.recipe import Recipe
from personalign.policy.logprobs import Branches
from personalign.policy.lora import LoRAConfig

BEST = {"gradient_checkpointing": False, "precompute_ref_log_probs": True}


def need() -> None:
    """End the program with a plain line where TRL is not installed."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        sys.exit(f"{error}: the other side of this comparison is TRL; install it with  pip install 'trl==1.16.0'")
    from datasets import disable_progress_bars

    disable_progress_bars()


def settings(recipe: Recipe, beta: float, precision: str, folder: Path, **changes: Any) -> Any:
    """Its defaults, and what makes the task the same: rate, schedule, batch, order, precision; then `changes`."""
    from trl import DPOConfig

    return DPOConfig(
        output_dir=str(folder),
        beta=beta,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=recipe.max_grad_norm or 0.0,
        weight_decay=recipe.weight_decay,
        per_device_train_batch_size=recipe.batch_size,
        max_steps=recipe.steps,
        train_sampling_strategy="sequential",
        bf16=precision == "bf16",
        use_cpu=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        **changes,
    )


def make(tokenizer: Any, model: Any, lora: LoRAConfig, rows: Sequence[Branches], args: Any) -> Any:
    """A trainer of `rows`, in their order. It tokenises texts by itself, so what it made of them is compared."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import DPOTrainer

    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=[*lora.targets])
    names = ("prompt", "chosen", "rejected")
    texts = [dict(zip(names, map(tokenizer.decode, (row.prompt, *row.answers)), strict=True)) for row in rows]
    data = Dataset.from_list(texts)
    trainer = DPOTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=config)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    for ids, row in zip(trainer.train_dataset, rows, strict=True):
        if (*(tuple(ids[f"{name}_ids"]) for name in names),) != (row.prompt, *row.answers):
            raise AssertionError("TRL reads other tokens than we do")
    return trainer


def copy_start(trainer: Any, start: dict[str, Tensor]) -> None:
    """Give every adapted layer the A that our side starts from; B is zero in both."""
    theirs = dict(trainer.model.named_parameters())
    with torch.no_grad():
        for path, weight in start.items():
            theirs[f"base_model.model.{path}.lora_A.default.weight"].copy_(weight)


def train(trainer: Any) -> bench.Clock:
    """Train to the end."""
    from transformers import TrainerCallback

    clock = bench.Clock()

    class Listen(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
            if "loss" in logs:
                clock.tick(logs["loss"])

    trainer.add_callback(Listen())
    trainer.train()
    return clock


def reference_seconds(trainer: Any) -> float:
    """How long it takes to compute the reference log-probs of its pairs once."""
    started = time.perf_counter()
    for batch in trainer.get_train_dataloader():
        trainer.compute_ref_log_probs(trainer.model, batch)
    return time.perf_counter() - started
