"""What happens beside the training steps: random states, figures and progress, checkpoints."""

from __future__ import annotations

import io
import pickle
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO

from personalign.contracts import UserError
from personalign.runtime.files import plain_errors, write_atomic
from personalign.runtime.progress import Bar, track
from personalign.runtime.seeds import derive

RECENT = 10  # steps whose mean is a stage's figure


class Checkpoints(CheckpointIO):
    """Checkpoints that are whole or absent, and hold nothing but tensors and plain data: loading runs no code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        with plain_errors(path, "read"):
            content = io.BytesIO(Path(path).read_bytes())
        try:
            loaded: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
            raise UserError(f"the checkpoint {path} is damaged: remove it to train from the start") from error
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Reseed(pl.Callback):
    """Draws of a forward pass (dropout) depend on seed, stage, rank and position alone: resuming changes none."""

    def __init__(self, seed: int, stage: str) -> None:
        self.seed, self.stage = seed, stage

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        torch.manual_seed(derive(self.seed, self.stage, str(batch_idx), str(trainer.global_rank)))


class History(pl.Callback):
    """The figures of every step, means over the global batch: kept in checkpoints, logged, shown as progress."""

    def __init__(self, stage: str, steps: int) -> None:
        self.stage, self.steps = stage, steps
        self.curve: dict[str, list[float]] = {}
        self._pending: list[dict[str, torch.Tensor]] = []
        self._open = ExitStack()
        self._bar: Bar | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        bar = track(f"train {self.stage}", self.steps, "steps", done=trainer.global_step)
        self._bar = self._open.enter_context(bar)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._pending.append(outputs["figures"])
        if len(self._pending) == trainer.accumulate_grad_batches:
            self._step(trainer)

    def _step(self, trainer: pl.Trainer) -> None:
        names = sorted(self._pending[0])
        mean = torch.stack([torch.stack([one[name].float() for name in names]) for one in self._pending]).mean(0)
        mean = trainer.strategy.reduce(mean, reduce_op="mean")
        values = dict(zip(names, mean.tolist(), strict=True))
        self._pending = []
        for name, value in values.items():
            self.curve.setdefault(name, []).append(value)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        for logger in trainer.loggers:
            metrics = {f"{self.stage}/{name}": value for name, value in values.items()}
            logger.log_metrics({**metrics, f"{self.stage}/learning_rate": rate}, step=trainer.global_step)
        if self._bar:
            self._bar.advance(1, f"loss {values['loss']:.3f}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._open.close()

    def figures(self) -> dict[str, float]:
        """The mean of every figure over the last steps, and how many steps there were."""
        recent = {name: values[-RECENT:] for name, values in self.curve.items()}
        return {"steps": float(self.steps)} | {name: sum(v) / len(v) for name, v in recent.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"curve": {name: list(values) for name, values in self.curve.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve = state_dict["curve"]


class Save(pl.Callback):
    """One checkpoint, replaced after every so many optimizer steps but the last, which is saved as the result."""

    def __init__(self, path: Path, every: int, steps: int) -> None:
        self.path, self.every, self.steps = path, every, steps
        self._seen = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, before = trainer.global_step, self._seen
        self._seen = step
        # Within a step gradients have piled up that no checkpoint holds.
        if step != before and step % self.every == 0 and step != self.steps:
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lightning counts micro-batches, of which a step has more or fewer on another number of processes."""
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            more = batches - counts["ready"]
            counts.update({name: count + more for name, count in counts.items()})
