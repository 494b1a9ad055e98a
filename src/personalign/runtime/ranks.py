"""Where this process stands among the ranks of a run, whoever started them: we, torchrun or SLURM's srun."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

from personalign.contracts import UserError

# What srun tells a process, by the name under which torchrun, Lightning and DeepSpeed look for it.
SLURM = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
    "NODE_RANK": "SLURM_NODEID",
}
PORT = 15000  # and the last digits of the job's number: where SLURM's ranks meet
PATIENCE = timedelta(days=7)  # that ranks wait for one that still works; one that died is noticed at once


@dataclass(frozen=True, slots=True)
class Rank:
    """Number `rank` of `world`, and number `here` of the `beside` that share this machine."""

    rank: int
    world: int
    here: int
    beside: int


@cache
def started() -> Rank | None:
    """This process as the rank that somebody started it as; None when it may start ranks itself.

    Asked once, since Lightning takes WORLD_SIZE away when a training has ended. Raises UserError where the environment
    says no number.
    """
    if "WORLD_SIZE" not in os.environ and _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        os.environ.update(from_slurm(os.environ))
    if "LOCAL_RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    world, here = _number("WORLD_SIZE"), _number("LOCAL_RANK")
    return Rank(_number("RANK", here), world, here, _number("LOCAL_WORLD_SIZE", world))


def _number(name: str, absent: int = 0) -> int:
    """What a variable of the environment says. Raises UserError where that is no number."""
    told = os.environ.get(name, str(absent))
    if not re.fullmatch(r"[0-9]+", told):
        raise UserError(
            f"the environment variable {name} is {told!r}, and torchrun or srun sets it to a number: start this "
            f"command with one of them, or without {name} (unset {name})"
        )
    return int(told)


def from_slurm(told: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables from those of srun."""
    first = re.match(r"([^\[,]+)(?:\[(\d+))?", told["SLURM_STEP_NODELIST"])
    assert first is not None, "a step has a machine"
    beside = re.match(r"\d+", told["SLURM_STEP_TASKS_PER_NODE"])
    return {
        **{name: told[theirs] for name, theirs in SLURM.items()},
        "LOCAL_WORLD_SIZE": beside[0] if beside else "1",
        "MASTER_ADDR": first[1] + (first[2] or ""),
        "MASTER_PORT": str(PORT + int(told["SLURM_JOB_ID"]) % 10000),
    }


def leads() -> bool:
    """Whether this process is the one that does what is done once: tells the user, holds locks."""
    rank = started()
    return rank is None or rank.rank == 0


def check(rank: Rank | None, devices: int, num_nodes: int) -> None:
    """Raise UserError where the processes that were started are not those that the trainer asks for."""
    if rank is not None and rank.world != devices * num_nodes:
        raise UserError(
            f"{rank.world} processes were started, but devices={devices} on num_nodes={num_nodes} are asked for: "
            f"set devices={max(1, rank.world // num_nodes)} and a trainer for several processes (trainer=ddp_cpu)"
        )
    if rank is None and num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={num_nodes}: start this command on every machine, one process a device, with "
            "torchrun or srun"
        )


def join(backend: str | None, ranks: int) -> None:
    """Meet the other ranks of this run, if there are any."""
    import torch

    if backend == "nccl" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if ranks > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend or "gloo", timeout=PATIENCE)


def wait_for_all(ranks: int) -> None:
    """Go on when every rank has come here."""
    import torch

    if ranks > 1:
        torch.distributed.barrier()
