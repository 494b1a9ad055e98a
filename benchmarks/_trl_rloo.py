"""TRL's RLOOTrainer on the prompts, the model, the reward and the first LoRA weights of our side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _shared as bench  # before torch: it settles the threads

from personalign.alignment.rloo import RLOO
from personalign.alignment.rollouts import Prompt
from personalign.policy.policy import Policy

BEST = {"gradient_checkpointing": False}


def settings(stage: RLOO, precision: str, folder: Path, **changes: Any) -> Any:
    """Its defaults, and what makes the task the same: answers of full length at temperature 1; then `changes`."""
    from trl import RLOOConfig

    recipe = stage.recipe
    return RLOOConfig(
        output_dir=str(folder),
        beta=stage.penalty.beta,
        num_generations=stage.samples,
        per_device_train_batch_size=recipe.batch_size * stage.samples,
        max_completion_length=stage.limits.max_answer,
        generation_kwargs={"min_new_tokens": stage.limits.max_answer},
        temperature=1.0,
        normalize_advantages=stage.normalize,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=recipe.max_grad_norm or 0.0,
        weight_decay=recipe.weight_decay,
        max_steps=recipe.steps,
        shuffle_dataset=False,
        bf16=precision == "bf16",
        use_cpu=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        **changes,
    )


def make(
    policy: Policy, model: Any, stage: RLOO, prompts: Sequence[Prompt], rate: Callable[[str], float], args: Any
) -> Any:
    """A trainer of `prompts`. It tokenises texts by itself, so what it makes of them is compared."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import RLOOTrainer

    lora = stage.adapters.config
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=lambda completions, **others: [rate(text) for text in completions],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": policy.tokenizer.decode(prompt.ids)} for prompt in prompts]),
        processing_class=policy.tokenizer,
        peft_config=LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=[*lora.targets]
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    theirs = trainer._tokenize_prompts([row["prompt"] for row in trainer.train_dataset])[0]
    if [tuple(ids) for ids in theirs] != [prompt.ids for prompt in prompts]:
        raise AssertionError("TRL reads other tokens than we do")
    return trainer


def train(trainer: Any, lengths: list[float]) -> bench.Clock:
    """Train to the end; `lengths` takes the mean length of every step's answers."""
    from transformers import TrainerCallback

    clock = bench.Clock()

    class Listen(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
            if "loss" in logs:
                clock.tick(logs["loss"])
                lengths.append(logs["completions/mean_length"])

    trainer.add_callback(Listen())
    trainer.train()
    return clock
