"""The whole way on a tiny model: what a record holds, what resuming gives, and that the guide never sees the truth."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from personalign import Experiment, compose
from personalign.runtime.rundir import RunDir
from personalign.types import Request, Score, UserState

SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=8",
    "requests.limit=3",
    "requests.pairs=2",
    "data.users=4",
    "data.pool=shipped",
    "decoding.batch_size=4",
]
PROMPTED = ["memory=statement", "generation=preference_prompt"]
COUNTED = ("metrics", "identity", "seed", "data_hash", "flags", "users", "training")


def config(tmp_path: Path, *more: str) -> Any:
    return compose([*SMALL, f"paths.runs={tmp_path}", *more])


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on time and machine."""
    kept = {key: record[key] for key in COUNTED}
    kept["metrics"] = {k: v for k, v in kept["metrics"].items() if k != "tokens_per_second"}
    return json.loads(json.dumps(kept))  # type: ignore[no-any-return]


def test_a_record_holds_what_it_takes_to_trust_it(tmp_path: Path) -> None:
    record = Experiment(config(tmp_path, *PROMPTED)).run()
    reward = record["metrics"]["reward"]
    assert reward["n"] == 12 and reward["users"] == 4 and reward["low"] <= reward["value"] <= reward["high"]
    assert record["data_hash"] and record["provenance"] and record["config"]["seed"] == 0
    assert record["flags"] == []
    folder = tmp_path / record["identity"]
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(row["truth"]["dimensions"] for row in rows)


def test_the_record_s_reward_is_that_of_the_text(tmp_path: Path) -> None:
    """Recomputed from the answers as they were written, by the definition R_u(y) = (p^u)^T r(y)."""
    record = Experiment(config(tmp_path, *PROMPTED)).run()
    folder = tmp_path / record["identity"]
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    totals: dict[str, list[float]] = {}
    for row in rows:
        stance = record["users"][row["user"]]["stance"]
        totals.setdefault(row["user"], []).append(sum(p * row["truth"]["dimensions"][d] for d, p in stance.items()))
    mean = sum(sum(v) / len(v) for v in totals.values()) / len(totals)
    assert record["metrics"]["reward"]["value"] == pytest.approx(mean, abs=1e-9)


def test_a_finished_run_is_read_and_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Experiment(config(tmp_path)).run()
    monkeypatch.setattr(Experiment, "_all_ranks", lambda self: pytest.fail("computed again"))
    assert lasting(Experiment(config(tmp_path)).run()) == lasting(first)


def test_what_another_process_did_while_this_one_waited_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find nothing done, and the second one gets the lock when the first has ended."""
    second = Experiment(config(tmp_path))
    real, done = RunDir.lock, []

    def lock(run: RunDir, starts: int | None) -> Any:
        if not done:
            done.append(None)
            done.append(Experiment(config(tmp_path)).run())
            monkeypatch.setattr(Experiment, "_all_ranks", lambda self, me: pytest.fail("computed again"))
        return real(run, starts)

    monkeypatch.setattr(RunDir, "lock", lock)
    assert second.run() == done[1]


SCRIPT = """
import sys
from personalign.runtime.threads import configure
configure()
from personalign import Experiment, compose
Experiment(compose(sys.argv[1:])).run()
"""


def test_killed_at_random_points_and_run_again_gives_the_same_record(tmp_path: Path) -> None:
    more = ["sampling.temperature=1.0", "sampling.n=2", *PROMPTED, "requests.limit=6"]
    whole = Experiment(config(tmp_path / "whole", *more)).run()
    broken = tmp_path / "broken"
    arguments = [*SMALL, f"paths.runs={broken}", *more]
    folder = broken / whole["identity"]
    draw = random.Random(7)
    kills = 0
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.DEVNULL)
        before = _lines(folder)
        while process.poll() is None and _lines(folder) <= before:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    record = Experiment(compose(arguments)).run()
    assert kills >= 2, "the runs were too short to be interrupted"
    assert lasting(record) == lasting(whole)


def _lines(folder: Path) -> int:
    path = folder / "samples-0.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_data_without_a_held_out_request_are_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from personalign.contracts import UserError
    from personalign.system import System

    monkeypatch.setattr(System, "policy", property(lambda self: pytest.fail("loaded a model")))
    texts = {"chosen": "How lovely!", "rejected": "No."}
    rows = [{"user": "ana", "prompt": prompt, "split": "train", **texts} for prompt in ("Name a tree.", "A fjord?")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    words = ["data=jsonl", f"data.path={tmp_path}", "reward@truth=none", "model=tiny", f"paths.runs={tmp_path}/runs"]
    experiment = Experiment(compose(words))
    with pytest.raises(UserError, match=r"^data=jsonl holds out no request .*split test.*, or choose other data$"):
        experiment.run()
    assert experiment.dir.status() == "failed"


def test_the_guide_never_sees_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spy in the guide's place is handed recalled states only: without memory, it learns nothing of the user."""
    from personalign.contracts import Reward
    from personalign.system import System

    seen: list[UserState] = []

    class Spy(Reward):
        def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
            seen.append(state)
            return [Score(0.0) for _ in responses]

    prepare = System.prepare

    def with_spy(self: System) -> None:
        self.guide = Spy()
        prepare(self)

    monkeypatch.setattr(System, "prepare", with_spy)
    Experiment(config(tmp_path, "sampling.temperature=1.0", "sampling.n=2")).run()
    assert len(seen) > 0 and all(state == UserState() for state in seen)


def test_a_guide_that_is_the_truth_is_marked(tmp_path: Path) -> None:
    record = Experiment(config(tmp_path, "reward@guide=exact", "memory=stance_stated")).run()
    assert record["flags"] == ["oracle"]


def test_a_run_that_failed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from personalign.runtime.rundir import Taken
    from personalign.system import System

    def broken(self: System) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(System, "prepare", broken)
    experiment = Experiment(config(tmp_path))
    with pytest.raises(RuntimeError):
        experiment.run()
    assert experiment.dir.status() == "failed" and "on fire" in experiment.dir.details()["error"]
    told = experiment.dir.details()
    with pytest.raises(Taken, match="begun by another process"):
        Experiment(config(tmp_path)).run(starts=0)
    assert experiment.dir.details() == told, "whoever looked before it failed leaves it alone"
    with pytest.raises(RuntimeError):
        Experiment(config(tmp_path)).run(starts=1)


def test_a_gpu_that_is_not_there_is_said_plainly(tmp_path: Path) -> None:
    import torch

    from personalign.contracts import UserError

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="needs a GPU that torch can use"):
        Experiment(config(tmp_path, "trainer=gpu")).run()
