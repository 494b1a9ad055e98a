"""Every way of training under two processes, through the real CLI: the record and the weights of one process.

Each rank is one process for all compositions, one after the other, since most of the time goes into imports. Tolerances
are those of float32 sums in another order: figures 1e-4, weights 2e-4 (AdamW takes whole steps of what is near zero).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=6",
    "requests.limit=2",
    "requests.pairs=2",
    "data.users=4",
    "data.pool=shipped",
    # As in test_ranks: opposed users would leave AdamW the rounding alone.
    "data.kind=dirichlet",
    "data.min_gap=0.5",
    "decoding.batch_size=2",
    "evaluation.resamples=20",
]
STANCE = "memory=stance_stated"
KNOWN = "dimensions=[warmth,grade,formality]"
DRAWN = ["sampling.n=2", "sampling.temperature=0.7"]


def short(stage: str, *more: str, steps: int = 3) -> list[str]:
    return [f"alignment.{stage}.{value}" for value in (f"steps={steps}", "batch_size=4", *more)]


# What is composed for each stage; but for pplug and e2p, which need an embedding model.
STAGES = {
    "user_adapter": ["experiments/oppu.yaml", *short("sft"), *short("user_adapter", "objective=dpo")],
    "federated": ["experiments/federated.yaml", *short("federated", "rounds=2"), *short("user_adapter")],
    "cope": ["experiments/cope.yaml", *short("sft"), *short("user_adapter"), *short("cope")],
    "modpo": ["experiments/modpo.yaml", *short("modpo")],
    "modpo_features": [
        "experiments/rewarded_soups.yaml",
        "alignment=[pad,modpo_features]",
        *short("pad", KNOWN),
        *short("modpo_features", KNOWN),
    ],
    "chebyshev": ["experiments/chebyshev.yaml", *short("chebyshev")],
    "ric": ["experiments/ric.yaml", *short("ric")],
    "soup": ["experiments/rewarded_soups.yaml", *short("pad")],
    "vas": ["experiments/vas.yaml", *short("vas", "max_answer=8", steps=5)],
    "parm": ["experiments/parm.yaml", *short("parm")],
    "genarm": ["experiments/genarm.yaml", *short("genarm")],
    "aligner": ["experiments/aligner.yaml", *short("aligner")],
    "metaaligner": ["experiments/metaaligner.yaml", *short("metaaligner", "warm_up_steps=2", "equal_steps=2")],
    "bipo": ["experiments/bipo.yaml", *short("bipo")],
    "reward_head": ["experiments/args.yaml", *short("reward_head", steps=5)],
    "lore": ["experiments/best_of_n_lore.yaml", *short("lore", steps=5), *DRAWN],
    "vpl": ["alignment=vpl", "memory=vpl", "reward@guide=vpl", "generation=best_of_n", *short("vpl", steps=5), *DRAWN],
    "soft_tokens": ["experiments/p_rlhf.yaml", *short("soft_tokens")],
    "pad_stance_head": [
        "alignment=[pad,pad_stance_head]",
        "memory=stance_head",
        *short("pad"),
        *short("pad_stance_head"),
    ],
    "pad_hidden_head": [
        "experiments/pad_released.yaml",
        "alignment=[dpo,pad_hidden_head]",
        "generation.head=pad",
        *short("dpo"),
        *short("pad_hidden_head"),
    ],
}
TRAINERS = {
    "ddp": ["trainer=ddp_cpu", "devices=2"],
    "zero2": ["trainer=deepspeed_cpu", "devices=2"],
    "zero3": ["trainer=deepspeed_cpu", "devices=2", "trainer.zero_stage=3"],
}
RANK = """
import json, sys
from personalign.cli import main
for line in json.loads(sys.argv[1]):
    status = main(line)
    assert status == 0, (line, status)
"""
pytestmark = pytest.mark.slow


def lines(folder: Path, *trainer: str) -> list[list[str]]:
    """A command for each stage, in a folder of its own."""
    found = []
    for name, words in STAGES.items():
        file = [word for word in words if word.endswith(".yaml")]
        own = [word for word in words if word not in file]
        found.append(["run", *file, *SMALL, *own, *trainer, f"paths.runs={folder / name}"])
    return found


def ranks(commands: list[list[str]], world: int) -> None:
    """Run the commands one after the other, in as many processes as there are ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "PERSONALIGN_QUIET": "1", "OMP_NUM_THREADS": "1"}
    group = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "NODE_RANK": "0"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, json.dumps(commands)],
            env={**shared, **({**group, "RANK": rank, "LOCAL_RANK": rank} if world > 1 else {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in map(str, range(world))
    ]
    try:
        said = [rank.communicate(timeout=900)[1] for rank in started]
    finally:
        for rank in started:
            rank.kill()
    assert [rank.returncode for rank in started] == [0] * world, said


def result(folder: Path) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Every figure of a record but the speed, and every weight that was learned, by stage.

    Accuracies of training are left out: before the first step a margin is 0 up to rounding, and so is its sign. What a
    later stage is called depends on the last bit of the one before, so that its hash is left out.
    """
    (path,) = folder.glob("*/record.json")
    record: dict[str, Any] = json.loads(path.read_text())
    training = record["training"].items()
    figures = {f"{stage}/{name}": value for stage, told in training for name, value in told.items()}
    figures = {name: value for name, value in figures.items() if not name.endswith("accuracy")}
    figures |= {name: one["value"] for name, one in record["metrics"].items() if name != "tokens_per_second"}
    weights = {}
    for file in sorted(folder.glob("policies/checkpoints/**/*.safetensors")):
        stage, *place = file.relative_to(folder / "policies" / "checkpoints").parts
        for name, weight in load_file(file).items():
            weights["/".join([stage.rpartition("-")[0], *place, name])] = weight
    return figures, weights


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of them."""
    folder = tmp_path_factory.mktemp("one")
    ranks(lines(folder), 1)
    return folder


@pytest.mark.parametrize("trainer", TRAINERS)
def test_two_processes_train_every_stage_as_one_does(trainer: str, one: Path, tmp_path: Path) -> None:
    ranks(lines(tmp_path, *TRAINERS[trainer]), 2)
    for name in STAGES:
        expected, weights = result(one / name)
        figures, theirs = result(tmp_path / name)
        assert figures == pytest.approx(expected, rel=1e-4, abs=1e-4), name
        assert weights and theirs.keys() == weights.keys(), name
        worst = {key: float((weights[key] - theirs[key]).abs().max()) for key in weights if weights[key].numel()}
        assert max(worst.values()) < 2e-4, (name, max(worst.items(), key=lambda item: item[1]))
