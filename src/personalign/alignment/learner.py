"""The one LightningModule of alignment: what learns, under an objective, by AdamW."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from personalign.alignment.batches import Indices
from personalign.alignment.recipe import Recipe
from personalign.contracts import UserError
from personalign.policy.policy import Policy

Objective = Callable[[Indices], tuple[Tensor, Mapping[str, Tensor]]]


class Practice(Protocol):
    """What is done before each step with the policy as it then is; its state lies in the checkpoints."""

    def begin(self, step: int, rows: Indices) -> None:
        """`rows` are all that this process will be handed in this step."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Paced(Protocol):
    """An objective that changes over the training: it is told at which optimizer step (from 0) it is called."""

    def at(self, step: int) -> None: ...


class Learner(pl.LightningModule):
    """Trains groups of parameters of a policy; its state is these parameters, and that of a practice if there is one.

    An objective turns the indices of a micro-batch into the mean loss and the figures to report.
    """

    def __init__(
        self,
        title: str,
        policy: Policy,
        groups: Sequence[Sequence[nn.Parameter]],
        objective: Objective,
        recipe: Recipe,
        practice: Practice | None = None,
    ) -> None:
        super().__init__()
        self.title, self.objective, self.recipe, self.practice = title, objective, recipe, practice
        self.model, self.heads = policy.model, policy.heads
        self.groups = groups
        self.strict_loading = False

    def begin(self, step: int, rows: Indices) -> None:
        """Practise, if there is anything to: each rank runs the policy as often as it must, so no weight is cut up."""
        if self.practice is not None:
            # A strategy may write to weights past the count by which decoding knows that its copies are old.
            torch.autograd.graph.increment_version(self.trainable().values())
            with getattr(self.trainer.strategy, "whole", nullcontext)():
                self.practice.begin(step, rows)

    def training_step(self, batch: Indices, batch_idx: int) -> dict[str, Any]:
        if isinstance(self.objective, Paced):
            self.objective.at(self.global_step)
        loss, figures = self.objective(batch)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss of stage {self.title!r} is {float(loss.detach())} at step {self.global_step + 1}: lower its "
                f"learning_rate (now {self.recipe.learning_rate}) or its max_grad_norm, and run it again"
            )
        return {"loss": loss, "figures": {"loss": loss.detach(), **figures}}

    def configure_optimizers(self) -> Any:
        groups = [{"params": list(group)} for group in self.groups]
        optimizer = torch.optim.AdamW(groups, lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay)
        scheduler = LambdaLR(optimizer, lambda step: self.recipe.rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Each group on its own: what is trained beside it must not change an adapter."""
        if gradient_clip_val is not None:
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], gradient_clip_val)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what learns, without the frozen base."""
        checkpoint["state_dict"] = {name: p.detach() for name, p in self.trainable().items()}
        if self.practice is not None:
            checkpoint["practice"] = self.practice.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError where the checkpoint is of other parameters, as the base is not compared."""
        if self.trainable().keys() != checkpoint["state_dict"].keys():
            raise UserError(
                f"the checkpoint of stage {self.title!r} is of other weights: remove it to train from the start"
            )
        if self.practice is not None:
            self.practice.load_state_dict(checkpoint["practice"])
