"""Steps of RLOO beside TRL's trainer: answers drawn, scored and learned from, as ratios.

    personalign bench rloo
    personalign bench rloo -- --samples 2 --answer 80

Our side is the stage of conf/alignment/rloo.yaml, trained as a run trains it. All sides start from the same LoRA
weights, are asked the same prompts, and draw as many answers of the same length from the policy at temperature 1: none
may end before. The reward counts words and costs nothing. The first step of each training warms up and is not timed.
That the losses are the same for the same answers is a test (tests/alignment/test_trl.py); here each side draws its own.
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import _shared as bench  # before torch: it settles the threads
import _trl as trl
import _trl_rloo as trl_rloo
from _task import SEED, Listen, Made, render
from torch import Tensor

from personalign.alignment.rloo import RLOO
from personalign.alignment.rollouts import Prompt
from personalign.contracts import Guide
from personalign.policy import lora
from personalign.policy.policy import Policy
from personalign.runtime.fitting import Fitting
from personalign.types import Score

ENDS = 8  # tokens of the answers in the made-up pairs, which nobody reads


def rate(text: str) -> float:
    return len(text.split()) / 10


GUIDE = Guide(lambda asked: [[Score(rate(text)) for text in texts] for _, texts in asked], lambda requests: "words")


class Told(Listen):
    """A logger that keeps the length of the answers, too."""

    def __init__(self, clock: bench.Clock, lengths: list[float]) -> None:
        super().__init__(clock)
        self.lengths = lengths

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.lengths.append(next(value for name, value in metrics.items() if name.endswith("/tokens")))
        super().log_metrics(metrics, step)


def stage_of(asked: Namespace) -> RLOO:
    values = bench.shipped("alignment", "rloo")
    del values["_target_"]
    changes = {"steps": asked.steps + 1, "batch_size": asked.batch, "warmup": 0.0, "checkpoint_every": asked.steps + 1}
    stage = RLOO(**{**values, **changes, "samples": asked.samples, "max_answer": asked.answer})
    stage.bind(GUIDE, lambda requests: [])
    return stage


def ours(asked: Namespace, policy: Policy, stage: RLOO, data: Made, folder: Path, lengths: list[float]) -> bench.Clock:
    """The stage itself."""
    clock = bench.Clock()
    logger: Any = Told(clock, lengths)
    trainer = {**bench.shipped("trainer", "cpu"), "devices": 1}
    place = Path(mkdtemp(dir=folder))
    stage.fit(
        policy,
        data,
        render,
        Fitting(trainer=trainer, folder=place, cache=folder, logger=logger, seed=SEED, micro_batch=asked.batch),
    )
    policy.reset()
    return clock


def theirs(
    asked: Namespace,
    policy: Policy,
    stage: RLOO,
    data: Made,
    folder: Path,
    lengths: list[float],
    changes: Mapping[str, Any],
) -> bench.Clock:
    prompts = [Prompt(one, tuple(policy.encode(one.messages))) for one in data.requests("train")]
    args = trl_rloo.settings(stage, asked.precision, folder / "trl", **changes)
    trainer = trl_rloo.make(policy, bench.plain(asked), stage, prompts, rate, args)
    trl.copy_start(trainer, first_weights(policy, stage))
    return trl_rloo.train(trainer, lengths)


def first_weights(policy: Policy, stage: RLOO) -> dict[str, Tensor]:
    """A of every adapted layer, as the stage draws it."""
    stage.adapters.create(policy, SEED)
    found = {path: layer.delta(stage.adapter).A.detach().clone() for path, layer in lora.layers(policy.model)}
    policy.reset()
    return found


def main() -> None:
    made = bench.parser(__doc__ or "")
    made.set_defaults(repeats=3)  # a step takes long: 18 of them with those that warm up
    made.add_argument("--steps", type=int, default=1, help="timed steps of one training")
    made.add_argument("--batch", type=int, default=4, help="prompts of a step")
    made.add_argument("--samples", type=int, default=4, help="answers to a prompt")
    made.add_argument("--prompt", type=int, default=100, help="tokens of a prompt, about")
    made.add_argument("--answer", type=int, default=40, help="tokens of an answer")
    asked = made.parse_args()
    trl.need()
    with TemporaryDirectory() as folder:
        run(asked, Path(folder))


def run(asked: Namespace, folder: Path) -> None:
    policy, stage = bench.build(asked), stage_of(asked)
    policy.stop_ids = ()  # no answer ends before its last token
    data = Made(policy, stage.recipe.steps * asked.batch, asked.prompt, ENDS)
    print(bench.machine(asked))
    print(f"{asked.batch} prompts a step of about {asked.prompt} tokens, {asked.samples} answers to each of ", end="")
    print(f"{asked.answer} tokens; {asked.steps} timed steps a training", flush=True)
    given = (asked, policy, stage, data, folder)
    lengths: dict[str, list[float]] = {}

    def speed(name: str, side: Callable[[list[float]], bench.Clock]) -> float:
        return float(asked.batch * asked.samples / side(lengths.setdefault(name, [])).seconds())

    sides: dict[str, Callable[[list[float]], bench.Clock]] = {
        "TRL as it comes": lambda told: theirs(*given, told, {}),
        "TRL at its best": lambda told: theirs(*given, told, trl_rloo.BEST),
        "ours": lambda told: ours(*given, told),
    }
    report(bench.in_turn({name: partial(speed, name, side) for name, side in sides.items()}, asked.repeats), lengths)


def report(rates: Mapping[str, Sequence[float]], lengths: Mapping[str, Sequence[float]]) -> None:
    for name, found in rates.items():
        tokens = f"{min(lengths[name]):.0f} to {max(lengths[name]):.0f}"
        print(f"{name:26s} {statistics.median(found):8.3f} answers/s   of {tokens} tokens")
    for other in ("TRL as it comes", "TRL at its best"):
        print(f"{'ours, ' + other:44s} ratio {bench.ratio(rates['ours'], rates[other]):6.2f}")


if __name__ == "__main__":
    main()
