"""The torchmetrics classes: two gloo processes, one of them idle or with fewer items, equal one process."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from personalign.evaluation.metrics import (
    AlignmentAccuracy,
    Diversity,
    Items,
    Perplexity,
    Pooled,
    Repetition,
    UserMean,
    UserRatio,
    user_key,
)
from personalign.evaluation.statistics import Bootstrap, Estimate

HOW = Bootstrap(resamples=200, level=0.95, few_users=5, seed=0)
# Where items are cut into two ranks' shares: uneven, and one rank without any.
CUTS = [(0, 22, 31), (0, 0, 31), (0, 31, 31)]
Item = tuple[str, float, float, str]


def items() -> list[Item]:
    draw = random.Random(0)
    said = ["a b a b a b c", "one two three four five", "", "x y", "go go go go go go"]
    user, weight = (lambda: f"user {draw.randrange(4)}"), (lambda: draw.randrange(4))
    return [(user(), draw.gauss(0, 1), weight(), draw.choice(said)) for _ in range(31)]


def measured(mine: list[Item]) -> dict[str, Estimate]:
    kinds: dict[str, Items] = {
        "mean": UserMean(HOW),
        "ratio": UserRatio(HOW),
        "perplexity": Perplexity(HOW),
        "accuracy": AlignmentAccuracy(HOW),
        "diversity": Diversity(HOW),
        "repetition": Repetition(HOW),
        "pooled": Pooled(lambda sums: sums[..., 0] / (1 + sums[..., 1]), 2, HOW),
    }
    for item in mine:
        user, value, weight, said = [item[0]], [item[1]], [item[2]], [item[3]]
        for name in ("mean", "accuracy"):
            kinds[name].update(user, value)
        for name in ("ratio", "perplexity"):
            kinds[name].update(user, value, weight)
        for name in ("diversity", "repetition"):
            kinds[name].update(user, said)
        kinds["pooled"].update(user, [(item[1], item[2])])
    return {name: metric.compute() for name, metric in kinds.items()}


def rank(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=2)
    shares = [items()[cut[index] : cut[index + 1]] for cut in CUTS]
    found = [[tuple(estimate) for estimate in measured(share).values()] for share in shares]
    torch.save(found, f"{folder}/{index}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one_bit_for_bit(tmp_path: Path) -> None:
    multiprocessing.spawn(rank, (str(tmp_path),), nprocs=2)
    alone = measured(items())
    expected = [[tuple(estimate) for estimate in alone.values()]] * len(CUTS)
    for index in range(2):
        assert torch.load(tmp_path / f"{index}.pt", weights_only=False) == expected
    assert (alone["mean"].n, alone["mean"].users) == (31, 4)


def test_accuracy_counts_a_tie_one_half() -> None:
    metric = AlignmentAccuracy(HOW)
    metric.update(["u", "u", "u", "v"], [2.0, -1.0, 0.0, 0.0])
    assert metric.compute().value == pytest.approx((1.5 / 3 + 0.5) / 2)


def test_ratio_is_of_sums_within_a_user() -> None:
    metric = UserRatio(HOW)
    metric.update(["u", "u", "v", "v"], [10, 30, 5, 7], [1.0, 3.0, 2.0, 0.0])
    found = metric.compute()
    assert found.value == pytest.approx((40 / 4 + 5 / 2) / 2)
    assert (found.n, found.users) == (3, 2)


def test_perplexity_is_the_geometric_mean_over_users() -> None:
    metric = Perplexity(HOW)
    metric.update(["u", "u", "v"], [4.0, 2.0, 9.0], [2, 2, 3])
    assert metric.compute().value == pytest.approx((torch.e ** (6 / 4) * torch.e ** (9 / 3)) ** 0.5)


def test_updates_in_pieces_resets_and_unequal_lengths() -> None:
    whole, pieces = UserMean(HOW), UserMean(HOW)
    whole.update(["u", "v", "u"], [1.0, 2.0, 4.0])
    pieces.update(["u"], [4.0])
    pieces.update(["v", "u"], [2.0, 1.0])
    assert whole.compute() == pieces.compute()
    pieces.reset()
    pieces.update(["w"], [7.0])
    assert pieces.compute().value == 7.0
    with pytest.raises(ValueError, match="differ in length"):
        whole.update(["u"], [1.0, 2.0])


def test_user_keys_are_exact_and_told_apart() -> None:
    keys = {user_key(f"user {i}") for i in range(5000)}
    assert len(keys) == 5000
    assert all(key == int(key) < 2**53 for key in keys)
    assert user_key("\ud800") != user_key("?")
