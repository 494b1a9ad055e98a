"""Steps of DPO beside TRL's trainer, and each saving of ours alone, as ratios with the losses beside them.

    personalign bench train
    personalign bench train -- --model tiny --precision fp32      the largest difference of a loss, in float32

Our side is the stage of conf/alignment/dpo.yaml, trained as a run trains it. "Nothing saved" is its objective as it is
commonly written: two rows a pair, logits of every token, the reference in every step; each saving is then made alone,
in the same trainer. All sides start from the same LoRA weights and see the same pairs in the same order. The first
step of each training warms up and is not timed.

In bf16 the margin of two such answers changes by up to 0.7 nats with the shape of the batch alone (embedded model,
against float32 by up to 2.7), so that the losses of a step agree to a few hundredths there, and to 1e-5 in float32.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _shared as bench  # before torch: it settles the threads
import _trl as trl
from _savings import Savings, Switched
from _task import SEED, Task, render, task
from torch import Tensor

from personalign.alignment.batches import Item, MicroBatches
from personalign.alignment.preference import Preference, items, references
from personalign.alignment.training import Lesson, train
from personalign.policy import lora
from personalign.runtime.fitting import Shard

LEVERS = {
    "nothing saved": Savings(),
    "logits of answers alone": Savings(logits=True),
    "reference computed once": Savings(reference=True),
    "prompt shared by a pair": Savings(prompt=True),
    "logits and reference": Savings(logits=True, reference=True),
}


def ours(given: Task) -> bench.Clock:
    """The stage itself."""
    clock = bench.Clock()
    given.stage.fit(given.policy, given.data, render, given.fitting(clock))
    given.policy.reset()
    return clock


def lever(given: Task, savings: Savings) -> bench.Clock:
    """The stage's trainer, batches and weights under the switched objective."""
    clock, stage, rows = bench.Clock(), given.stage, given.rows
    fitting = given.fitting(clock)

    def prepare() -> tuple[Preference, dict[str, list[Item]]]:
        reference = references(given.policy, rows, ()) if savings.reference else {}
        objective = Switched(given.policy, rows, reference, {stage.adapter: ((stage.adapter, 1.0),)}, stage.beta)
        objective.savings = savings
        return objective, items(rows)

    content = ["savings", asdict(savings)]
    lesson = Lesson(title=stage.adapter, trainee=stage.adapters, content=content, recipe=stage.recipe, prepare=prepare)
    train(given.policy, fitting, lesson)
    given.policy.reset()
    return clock


def their_trainer(given: Task, **changes: Any) -> Any:
    """TRL's trainer with our first weights and our order of the pairs."""
    stage, rows = given.stage, given.rows[given.stage.adapter]
    shard = Shard(rank=0, world=1, micro=stage.recipe.batch_size, accumulation=1)
    told = items(given.rows)
    batches = MicroBatches(told, shard, batch_size=stage.recipe.batch_size, steps=stage.recipe.steps, seed=SEED)
    order = [i for batch in batches for i in batch[stage.adapter]]
    args = trl.settings(stage.recipe, stage.beta, given.asked.precision, given.folder / "trl", **changes)
    model = bench.plain(given.asked)
    trainer = trl.make(given.policy.tokenizer, model, stage.adapters.config, [rows[i] for i in order], args)
    trl.copy_start(trainer, first_weights(given))
    return trainer


def first_weights(given: Task) -> dict[str, Tensor]:
    """A of every adapted layer, as the stage draws it."""
    given.stage.adapters.create(given.policy, SEED)
    name = given.stage.adapter
    found = {path: layer.delta(name).A.detach().clone() for path, layer in lora.layers(given.policy.model)}
    given.policy.reset()
    return found


def reference_times(given: Task) -> tuple[float, float]:
    """Seconds for the reference log-probs of all pairs: ours, TRL's. Ours stay on disk."""
    started = time.perf_counter()
    references(given.policy, given.rows, ())
    return time.perf_counter() - started, trl.reference_seconds(their_trainer(given))


def sides(given: Task) -> dict[str, Callable[[], bench.Clock]]:
    found: dict[str, Callable[[], bench.Clock]] = {
        "TRL as it comes": lambda: trl.train(their_trainer(given)),
        "TRL at its best": lambda: trl.train(their_trainer(given, **trl.BEST)),
        "ours": partial(ours, given),
    }
    return found | {name: partial(lever, given, savings) for name, savings in LEVERS.items()}


def report(rates: Mapping[str, Sequence[float]], losses: Mapping[str, Sequence[float]]) -> None:
    """Rates with their losses, ratios, and how far every side's losses are from ours at most."""
    for name, found in rates.items():
        apart = max(abs(a - b) for a, b in zip(losses["ours"], losses[name], strict=True))
        told = " ".join(f"{loss:.4f}" for loss in losses[name])
        print(f"{name:26s} {statistics.median(found):8.3f} pairs/s   losses {told}, from ours at most {apart:.1e}")
    base = "nothing saved"
    beside = [("ours", other) for other in ("TRL as it comes", "TRL at its best", base)]
    for first, second in [*beside, *[(name, base) for name in LEVERS if name != base]]:
        print(f"{first + ', ' + second:44s} ratio {bench.ratio(rates[first], rates[second]):6.2f}")


def main() -> None:
    made = bench.parser(__doc__ or "")
    made.add_argument("--steps", type=int, default=2, help="timed steps of one training")
    made.add_argument("--batch", type=int, default=4, help="pairs of a step")
    made.add_argument("--prompt", type=int, default=230, help="tokens of a prompt, about")
    made.add_argument("--answer", type=int, default=100, help="tokens of an answer, about")
    asked = made.parse_args()
    trl.need()
    with TemporaryDirectory() as folder:
        run(asked, Path(folder))


def run(asked: Namespace, folder: Path) -> None:
    given = task(asked, folder)
    rows = given.rows[given.stage.adapter]
    prompts, answers = [len(r.prompt) for r in rows], [len(a) for r in rows for a in r.answers]
    print(bench.machine(asked))
    print(f"{asked.batch} pairs a step; prompts of {min(prompts)} to {max(prompts)} tokens, ", end="")
    print(f"answers of {min(answers)} to {max(answers)}; {asked.steps} timed steps a training", flush=True)
    mine, others = reference_times(given)
    print(f"reference log-probs of {len(rows)} pairs, not in the rates: {mine:.2f} s, TRL {others:.2f} s", flush=True)
    losses: dict[str, list[float]] = {}

    def rate(name: str, side: Callable[[], bench.Clock]) -> float:
        clock = side()
        losses[name] = clock.losses
        return float(asked.batch / clock.seconds())

    timed = {name: partial(rate, name, side) for name, side in sides(given).items()}
    report(bench.in_turn(timed, asked.repeats), losses)


if __name__ == "__main__":
    main()
