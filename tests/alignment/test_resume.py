"""Training that was stopped anywhere ends as if it never had been, bit for bit."""

from __future__ import annotations

import fcntl
import json
import random
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from personalign.alignment.dpo import DPO
from personalign.alignment.preference import Preference
from personalign.contracts import UserError
from personalign.policy import lora
from personalign.policy.policy import Policy
from personalign.runtime import fitting
from personalign.runtime.fitting import Fitting
from personalign.types import Pair

CALLS = 9 * 4  # forward passes of the training below: steps x accumulation


@pytest.fixture
def stage(dpo_values: dict[str, Any]) -> DPO:
    """Nine steps over three epochs' ends, with dropout, accumulation and a schedule."""
    return DPO(**{**dpo_values, "steps": 9, "dropout": 0.2, "checkpoint_every": 2})


def weights(policy: Policy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in lora.parameters(policy.model, "aligned")]


class Stop(Exception):
    """Anything that ends a process."""


def stop_at(monkeypatch: pytest.MonkeyPatch, call: int, error: type[BaseException]) -> None:
    """Raise in the given forward pass from here on, and never before or after."""
    passes = iter(range(1, 1000))

    def interrupted(self: Preference, batch: dict[str, list[int]]) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        if next(passes) == call:
            raise error
        return original(self, batch)

    original = Preference.__call__
    monkeypatch.setattr(Preference, "__call__", interrupted)


@pytest.mark.parametrize("seed", range(4))
def test_interrupted_and_resumed_equals_uninterrupted(
    seed: int,
    stage: DPO,
    pairs: list[Pair],
    given: Callable[..., Any],
    render: Any,
    make_policy: Callable[[], Policy],
    make_fitting: Callable[..., Fitting],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = make_policy()
    expected = stage.fit(whole, given(pairs), render, make_fitting("whole", micro_batch=1))
    draw = random.Random(seed)
    # The first cut lies behind a checkpoint (every second step), the next one comes soon after it was taken up.
    for call in (draw.randrange(9, CALLS - 1), draw.randrange(1, 4)):
        policy = make_policy()
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_at(patch, call, Stop)
            stage.fit(policy, given(pairs), render, make_fitting("cut", micro_batch=1))
        assert policy.spec.adapters == () and policy.spec.aligned == ()
        torch.manual_seed(call)  # another process has other random states
        random.seed(call)
    policy = make_policy()
    found = stage.fit(policy, given(pairs), render, make_fitting("cut", micro_batch=1))
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(policy), weights(whole), strict=True))
    assert any(w.abs().max() > 0 for w in weights(policy)[1::2])


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (1, 2)])
def test_training_goes_on_in_other_micro_batches(
    before: int,
    after: int,
    dpo_values: dict[str, Any],
    pairs: list[Pair],
    given: Callable[..., Any],
    render: Any,
    make_policy: Callable[[], Policy],
    make_fitting: Callable[..., Fitting],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = DPO(**{**dpo_values, "steps": 9, "dropout": 0.0, "checkpoint_every": 3})
    whole, cut = make_policy(), make_policy()
    expected = stage.fit(whole, given(pairs), render, make_fitting("whole", micro_batch=after))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 4 * 4 // before, Stop)  # in the fourth step
        stage.fit(make_policy(), given(pairs), render, make_fitting("cut", micro_batch=before))
    found = stage.fit(cut, given(pairs), render, make_fitting("cut", micro_batch=after))
    assert found == pytest.approx(expected, abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(weights(cut), weights(whole), strict=True))


def test_ctrl_c_reaches_the_caller_and_leaves_a_checkpoint(
    stage: DPO,
    pairs: list[Pair],
    given: Callable[..., Any],
    render: Any,
    policy: Policy,
    make_fitting: Callable[..., Fitting],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    cut = make_fitting(micro_batch=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 20, KeyboardInterrupt)
        stage.fit(policy, given(pairs), render, cut)
    assert signal.getsignal(signal.SIGINT) is handler
    (last,) = cut.folder.rglob("last.ckpt")
    state = torch.load(last, weights_only=True)
    assert state["global_step"] == 4
    assert all(".deltas.aligned." in name for name in state["state_dict"]) and len(state["state_dict"]) == 12
    assert stage.fit(policy, given(pairs), render, cut)["steps"] == 9
    assert not last.exists()


def test_a_finished_stage_is_loaded(
    stage: DPO,
    pairs: list[Pair],
    given: Callable[..., Any],
    render: Any,
    make_policy: Callable[[], Policy],
    make_fitting: Callable[..., Fitting],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = make_policy(), make_policy()
    expected = stage.fit(first, given(pairs), render, make_fitting())
    monkeypatch.setattr(Preference, "__call__", None)
    before = torch.get_rng_state()
    assert stage.fit(second, given(pairs), render, make_fitting()) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert second.spec == first.spec and second.spec.aligned == (("aligned", 1.0),)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert not any(p.requires_grad for policy in (first, second) for p in policy.model.parameters())


def test_runs_that_share_a_folder_wait_for_the_one_that_began(
    stage: DPO,
    pairs: list[Pair],
    given: Callable[..., Any],
    render: Any,
    make_policy: Callable[[], Policy],
    make_fitting: Callable[..., Fitting],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = stage.fit(make_policy(), given(pairs), render, make_fitting())
    (done,) = make_fitting().folder.rglob("done.json")
    text = done.read_text()
    done.unlink()
    other = open(done.with_name("lock"), "wb")  # noqa: SIM115 - closed while the stage waits
    fcntl.flock(other, fcntl.LOCK_EX)

    def finish(seconds: float) -> None:
        done.write_text(text)
        other.close()

    monkeypatch.setattr(fitting.time, "sleep", finish)
    monkeypatch.setattr(Preference, "__call__", None)
    assert stage.fit(make_policy(), given(pairs), render, make_fitting()) == expected
    assert other.closed


def test_other_content_is_never_taken_for_the_same(
    pairs: list[Pair],
    dpo_values: dict[str, Any],
    given: Callable[..., Any],
    render: Any,
    make_policy: Callable[..., Policy],
    make_fitting: Callable[..., Fitting],
) -> None:
    def folders() -> int:
        return len(list((make_fitting().folder / "checkpoints").iterdir()))

    values = {**dpo_values, "steps": 1}
    for number, (change, data, seed, model) in enumerate(
        [
            ({}, pairs, 0, 0),
            ({"beta": 0.2}, pairs, 0, 0),
            ({"rank": 2}, pairs, 0, 0),
            ({"warmup": 0.0}, pairs, 0, 0),
            ({}, pairs[:-1], 0, 0),
            ({}, pairs, 1, 0),
            ({}, pairs, 0, 1),
        ],
        start=1,
    ):
        DPO(**{**values, **change}).fit(make_policy(model), given(data), render, make_fitting(seed=seed))
        assert folders() == number
    DPO(**values).fit(make_policy(0), given(pairs), render, make_fitting())
    assert folders() == 7


def test_training_leaves_random_states_as_they_were(
    stage: DPO, pairs: list[Pair], given: Callable[..., Any], render: Any, policy: Policy, make_fitting: Any
) -> None:
    before = torch.get_rng_state()
    stage.fit(policy, given(pairs), render, make_fitting())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_damaged_checkpoint_is_named(
    stage: DPO,
    pairs: list[Pair],
    given: Callable[..., Any],
    render: Any,
    policy: Policy,
    make_fitting: Callable[..., Fitting],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut = make_fitting()
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 9, Stop)
        stage.fit(policy, given(pairs), render, cut)
    (last,) = cut.folder.rglob("last.ckpt")
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"last\.ckpt is damaged: remove it"):
        stage.fit(policy, given(pairs), render, cut)


def test_a_loss_that_is_no_number_names_stage_step_and_remedy(
    dpo_values: dict[str, Any],
    pairs: list[Pair],
    given: Callable[..., Any],
    render: Any,
    policy: Policy,
    make_fitting: Callable[..., Fitting],
) -> None:
    stage = DPO(**{**dpo_values, "learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(UserError, match=r"stage 'aligned' is nan at step 2: lower its learning_rate \(now 1e\+30\)"):
        stage.fit(policy, given(pairs), render, make_fitting())


def test_unwritable_places_are_named(
    stage: DPO,
    pairs: list[Pair],
    given: Callable[..., Any],
    render: Any,
    policy: Policy,
    make_fitting: Any,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a part of its path is a file"):
        stage.fit(policy, given(pairs), render, make_fitting("file"))


def test_curves_are_kept_and_start_at_log_2(
    stage: DPO, pairs: list[Pair], given: Callable[..., Any], render: Any, policy: Policy, make_fitting: Any
) -> None:
    figures = stage.fit(policy, given(pairs), render, make_fitting())
    (path,) = make_fitting().folder.rglob("curve.json")
    curve = json.loads(path.read_text())
    assert set(curve) == {"loss", "accuracy", "margin"} and {len(v) for v in curve.values()} == {9}
    assert curve["loss"][0] == pytest.approx(0.693147, abs=1e-5)
    assert figures["loss"] == pytest.approx(sum(curve["loss"]) / 9)
    assert figures["loss"] < 0.6
