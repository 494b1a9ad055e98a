"""How alignment trains: one Lightning trainer for every stage, resumed where it was stopped, done once."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from personalign.contracts import UserError
from personalign.runtime import operators
from personalign.runtime.callbacks import Checkpoints, History, Reseed, Save
from personalign.runtime.files import make_folder, plain_errors, write_atomic
from personalign.runtime.progress import track
from personalign.runtime.ranks import leads, wait_for_all

DONE = "done.json"
LAST = "last.ckpt"
CURVE = "curve.json"
LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Shard:
    """What one of `world` processes does of a step: `accumulation` forward passes of `micro` pairs."""

    rank: int
    world: int
    micro: int
    accumulation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a stage hands over: a module with its trainable weights, its batches, and how to save the result.

    `name` is the stage's folder and says what the result depends on; `title` is for people and for the logger.
    The module's `training_step` returns {"loss", "figures"}. `save` writes into the folder it is given. A light
    training, of a head on known numbers, is not cut into micro-batches.
    """

    name: str
    title: str
    module: pl.LightningModule
    loader: Callable[[Shard], Iterable[Any]]
    save: Callable[[Path], None]
    steps: int
    batch_size: int
    max_grad_norm: float | None
    checkpoint_every: int
    light: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """Makes trainers as conf/trainer says. Results lie in `folder`/checkpoints/<stage>; `cache` is for what any
    run may use again; `micro_batch` is how many pairs (of each group) fit into one forward pass."""

    trainer: Mapping[str, Any]
    folder: Path
    cache: Path
    logger: Logger | None
    seed: int
    micro_batch: int

    def place(self, name: str) -> Path:
        """The folder of a stage."""
        return self.folder / "checkpoints" / name

    def figures(self, name: str) -> dict[str, float] | None:
        """What a finished stage came to; None where there is still something to train."""
        path = self.place(name) / DONE
        with plain_errors(path, "read"):
            text = path.read_text(encoding="utf-8") if path.is_file() else None
        return None if text is None else {key: float(value) for key, value in json.loads(text).items()}

    @contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Be the only run that trains a stage: runs that share a folder wait for the one that began."""
        path = make_folder(self.place(name)) / LOCK
        with plain_errors(path, "write"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if leads():  # one lock for all ranks of a run
                _wait_for(descriptor, name)
            if torch.distributed.is_initialized():
                wait_for_all(self._world())
            yield
            if path.with_name(DONE).is_file():  # also where a kill came between the two
                path.with_name(LAST).unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def run(self, training: Training) -> dict[str, float]:
        """Train to the end, from the last checkpoint where there is one; return the figures.

        Only a finished stage is marked as such. Raises KeyboardInterrupt on Ctrl-C, after which the same call
        goes on, and UserError where a loss is not finite or a file cannot be written.
        """
        place = make_folder(self.place(training.name))
        last = place / LAST
        history = History(training.title, training.steps)
        saving = Save(last, training.checkpoint_every, training.steps)
        micro, accumulation = self._split(training)
        trainer = self._trainer([Reseed(self.seed, training.title), history, saving], training, accumulation)
        shard = Shard(trainer.global_rank, trainer.world_size, micro, accumulation)
        with _undisturbed(training.module):
            _fit(trainer, training.module, training.loader(shard), last)
        if trainer.is_global_zero:
            training.save(place)
            write_atomic(place / CURVE, json.dumps(history.curve))
            write_atomic(place / DONE, json.dumps(history.figures(), indent=2) + "\n")
        return history.figures()

    def _split(self, training: Training) -> tuple[int, int]:
        """Pairs of a forward pass, and how many passes make one process's part of a global batch."""
        batch_size, world = training.batch_size, self._world()
        if batch_size % world:
            raise UserError(
                f"a batch of {batch_size} pairs cannot be shared by {world} processes: "
                f"make alignment's batch_size a multiple of {world}"
            )
        mine = batch_size // world
        most = mine if training.light else min(mine, self.micro_batch)
        micro = max(n for n in range(1, most + 1) if mine % n == 0)
        return micro, mine // micro

    def _world(self) -> int:
        return int(self.trainer["devices"]) * int(self.trainer["num_nodes"])

    def _trainer(self, callbacks: list[pl.Callback], training: Training, accumulation: int) -> pl.Trainer:
        cfg = self.trainer
        try:
            return pl.Trainer(
                accelerator=cfg["accelerator"],
                strategy=self._strategy(training),
                devices=int(cfg["devices"]),
                num_nodes=int(cfg["num_nodes"]),
                logger=self.logger or False,
                default_root_dir=str(self.folder),
                callbacks=callbacks,
                plugins=[Checkpoints(), LightningEnvironment()],
                max_epochs=1,
                accumulate_grad_batches=accumulation,
                gradient_clip_val=None if cfg["strategy"] == "deepspeed" else training.max_grad_norm,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
        except MisconfigurationException as error:
            raise UserError(
                f"trainer.accelerator {cfg['accelerator']} cannot be used here: {error}; choose trainer=cpu"
            ) from error

    def _strategy(self, training: Training) -> Any:
        """How processes share the work. Raises UserError where several have no way to."""
        cfg = self.trainer
        if cfg["strategy"] == "deepspeed":
            return self._zero(training)
        if cfg["strategy"] == "ddp":
            return DDPStrategy(process_group_backend=cfg["process_group_backend"])
        if self._world() > 1:
            raise UserError("several devices need a strategy: choose trainer=ddp_cpu or trainer=ddp, or devices=1")
        return "auto"

    def _zero(self, training: Training) -> Any:
        if self.trainer["accelerator"] == "cpu":
            operators.build(self.cache)
        from personalign.runtime.deepspeed import Zero

        trainable = [weight for weight in training.module.parameters() if weight.requires_grad]
        return Zero(self.trainer, trainable, training.max_grad_norm)


def _wait_for(descriptor: int, name: str) -> None:
    """Take the lock, and tell the user what is waited for while somebody else has it."""
    with track(f"another run trains {name}: waiting", None, "seconds") as bar:
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(1.0)
                bar.advance(1)


def _fit(trainer: pl.Trainer, module: pl.LightningModule, loader: Iterable[Any], last: Path) -> None:
    try:
        trainer.fit(module, train_dataloaders=loader, ckpt_path=str(last) if last.is_file() else None)
    except SystemExit:
        # Lightning ends the process on Ctrl-C; what is to happen then is the caller's choice.
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _undisturbed(module: pl.LightningModule) -> Iterator[None]:
    """Training leaves random states, the interrupt handler and the module's device as it found them."""
    handler = signal.getsignal(signal.SIGINT)
    device = next(module.parameters()).device
    with torch.random.fork_rng():
        try:
            yield
        finally:
            module.to(device)
            with suppress(ValueError):  # only the main thread may set handlers
                signal.signal(signal.SIGINT, handler)
