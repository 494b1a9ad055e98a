"""User adapters trained together in one forward pass beside one after another, with the losses of both.

    personalign bench users
    personalign bench users -- --batches 1 2 --objective dpo
    personalign bench users -- --model tiny --precision fp32      the largest difference of a loss, in float32

Both sides are the stage of conf/alignment/user_adapter.yaml, with its adapters in the upper half of the layers as with
scale=cpu; `together` alone differs. Every user has texts of their own. Steps are timed without the first of each
training, which warms up; the whole is what `fit` takes: setting up, all steps, and files.

How far `together` could come is told beside it: the ratio if its steps were nothing but the products with the frozen
weights, which take as long whoever trains. Where one user's row keeps the cores busy, it is not far.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import _shared as bench  # before torch: it settles the threads
import torch
from _task import Made, Task, render

from personalign.alignment.user_adapter import UserAdapter
from personalign.policy.policy import Policy
from personalign.policy.steering import decoder_layers

SIDES = ("together", "one after another")
REPEATS = 5  # of the products alone, of which the fastest counts


class Sides:
    """Both ways to train the same users, and what each came to."""

    def __init__(self, asked: Namespace, policy: Policy, batch: int, folder: Path) -> None:
        self.asked, self.policy, self.batch, self.folder = asked, policy, batch, folder
        steps = asked.steps + 1
        self.data = Made(policy, asked.users * steps * batch, asked.prompt, asked.answer, asked.users)
        self.whole: dict[str, list[float]] = {name: [] for name in SIDES}
        self.losses: dict[str, list[float]] = {}

    def stage(self, together: int) -> UserAdapter:
        values = bench.shipped("alignment", "user_adapter")
        del values["_target_"]
        steps = self.asked.steps + 1
        changes = {"steps": steps, "batch_size": self.batch, "checkpoint_every": steps, "warmup": 0.0, "min_pairs": 1}
        changes |= {"objective": self.asked.objective, "depth": self.asked.depth, "together": together}
        return UserAdapter(**{**values, **changes})

    def rate(self, name: str) -> float:
        """Steps of a user a second."""
        asked, clock = self.asked, bench.Clock()
        stage = self.stage(asked.users if name == SIDES[0] else 1)
        task = Task(asked, self.policy, stage, self.data, self.folder)
        started = time.perf_counter()
        stage.fit(self.policy, self.data, render, task.fitting(clock))
        self.whole[name].append(time.perf_counter() - started)
        self.policy.reset()
        size = asked.steps + 1
        parts = [
            bench.Clock(clock.ends[i : i + size], clock.losses[i : i + size]) for i in range(0, len(clock.ends), size)
        ]
        self.losses[name] = [sum(part.losses[i] for part in parts) / asked.users for i in range(size)]
        return float(asked.users / sum(part.seconds() for part in parts))


def products(policy: Policy, asked: Namespace, rows: int) -> float:
    """Seconds that the products with the frozen weights take in a step of so many rows, at least: forwards in every
    layer, backwards above the lowest adapted one, logits and their gradient where an answer is read."""
    layers, head = decoder_layers(policy.model), policy.model.get_output_embeddings().weight
    lowest = len(layers) - max(1, round(asked.depth * len(layers)))
    answers = asked.answer * (2 if asked.objective == "dpo" else 1)
    tokens = rows * (asked.prompt + answers)

    def once() -> float:
        for i, layer in enumerate(layers):
            for linear in (module for module in layer.modules() if type(module) is torch.nn.Linear):
                out = linear.weight.new_ones(tokens, linear.in_features) @ linear.weight.t()
                _ = out @ linear.weight if i > lowest else None
        _ = (head.new_ones(rows * answers, head.shape[1]) @ head.t()) @ head
        return 1.0

    with torch.no_grad():
        return 1 / max(bench.rate(once) for _ in range(REPEATS))


def report(sides: Sides, rates: Mapping[str, Sequence[float]]) -> None:
    """Rates with their losses, and the ratios of a step and of the whole."""
    print(f"{sides.batch} rows of each of {sides.asked.users} users a step")
    for name in SIDES:
        apart = max(abs(a - b) for a, b in zip(sides.losses[SIDES[0]], sides.losses[name], strict=True))
        told = " ".join(f"{loss:.4f}" for loss in sides.losses[name])
        print(f"{name:26s} {statistics.median(rates[name]):8.3f} user steps/s   losses {told}, apart {apart:.1e}")
    wholes = [[1 / seconds for seconds in sides.whole[name]] for name in SIDES]
    print(f"{'a step, ' + ', '.join(SIDES):44s} ratio {bench.ratio(rates[SIDES[0]], rates[SIDES[1]]):6.2f}")
    print(f"{'the whole, ' + ', '.join(SIDES):44s} ratio {bench.ratio(*wholes):6.2f}")
    alone = [products(sides.policy, sides.asked, sides.batch * users) for users in (sides.asked.users, 1)]
    print(f"the products alone: {alone[0]:.3f} s a step together, {alone[1]:.3f} s a step of one user")
    could = sides.asked.users / alone[0] / statistics.median(rates[SIDES[1]])
    print(f"{'a step, if together were its products alone':44s} ratio {could:6.2f}", flush=True)


def main() -> None:
    made = bench.parser(__doc__ or "")
    made.add_argument("--users", type=int, default=8)
    made.add_argument("--objective", choices=["nll", "dpo"], default="nll")
    made.add_argument("--depth", type=float, default=0.5, help="part of the layers that are adapted")
    made.add_argument("--steps", type=int, default=4, help="timed steps of one training")
    made.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="rows of each user a step")
    made.add_argument("--prompt", type=int, default=40, help="tokens of a prompt, about")
    made.add_argument("--answer", type=int, default=40, help="tokens of an answer, about")
    asked = made.parse_args()
    with TemporaryDirectory() as folder:
        run(asked, Path(folder))


def run(asked: Namespace, folder: Path) -> None:
    policy = bench.build(asked)
    policy.cache = None
    print(bench.machine(asked))
    print(f"prompts of about {asked.prompt} tokens, answers of {asked.answer}, {asked.objective}; ", end="")
    print(f"{asked.steps} timed steps a training", flush=True)
    for batch in asked.batches:
        sides = Sides(asked, policy, batch, folder)
        timed: dict[str, Callable[[], float]] = {name: partial(sides.rate, name) for name in SIDES}
        report(sides, bench.in_turn(timed, asked.repeats))


if __name__ == "__main__":
    main()
