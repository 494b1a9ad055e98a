"""MetaAligner's stages: what each reads, on top of what, and that the last is the corrector's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from personalign.alignment.metaaligner import MetaAligner
from personalign.alignment.preference import Imitation
from personalign.contracts import UserError
from personalign.policy import lora
from personalign.policy.policy import Policy
from personalign.types import Message, Messages, Pair, Request

Make = Callable[..., Any]
STAGES = ("metaaligner-warm_up", "metaaligner-equal", "metaaligner-contrast")


@pytest.fixture
def values(sft_values: dict[str, Any]) -> dict[str, Any]:
    mine = {"adapter": "metaaligner", "warm_up": 0.34, "warm_up_steps": 2, "equal_gap": 0.5, "equal_steps": 3}
    return {**sft_values, **mine, "steps": 4}


@pytest.fixture
def labelled(pairs: list[Pair]) -> list[Pair]:
    """Every third pair is equal in warmth, every fourth in grade, and no other in anything."""
    return [
        replace(pair, labels={"warmth": 0.5 if i % 3 == 0 else 1.0, "grade": -0.4 if i % 4 == 0 else -0.6})
        for i, pair in enumerate(pairs)
    ]


def asking(
    request: Request, targets: Mapping[str, float] | None = None, draft: str | None = None, equal: Sequence[str] = ()
) -> Messages:
    wish = f"equal {','.join(equal)}" if equal else f"better for {request.user}"
    return (Message("user", f"{request.messages[-1].content} {draft} {wish}"),)


def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Imitation]:
    """The objective of each stage."""
    found: dict[str, Imitation] = {}
    original = Imitation.__call__

    def noted(self: Imitation, batch: dict[str, list[int]]) -> tuple[Tensor, Mapping[str, Tensor]]:
        found.update(dict.fromkeys(self.rows, self))
        return original(self, batch)

    monkeypatch.setattr(Imitation, "__call__", noted)
    return found


def test_each_stage_reads_its_data_on_top_of_those_before(
    policy: Policy, labelled: list[Pair], values: dict[str, Any], given: Make, make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found = seen(monkeypatch)
    figures = MetaAligner(**values).fit(policy, given(labelled), asking, make_fitting())

    def read(stage: str) -> list[tuple[str, str]]:
        rows = found[stage].rows[stage]
        return [(policy.decode(list(row.prompt)), policy.decode(list(row.answers[0]))) for row in rows]

    def told(pair: Pair, equal: Sequence[str] = ()) -> tuple[str, str]:
        prompt = policy.encode(asking(pair.request, draft=pair.rejected, equal=equal))
        return policy.decode(prompt), pair.chosen

    better = [told(pair) for pair in labelled]
    assert read(STAGES[2]) == better and read(STAGES[0]) == better[:4]
    alike = {i: [d for d, every in (("warmth", 3), ("grade", 4)) if i % every == 0] for i in range(12)}
    assert read(STAGES[1]) == [told(labelled[i], alike[i]) for i in (0, 3, 4, 6, 8, 9)]
    assert [found[stage].deltas[stage] for stage in STAGES] == [
        tuple((name, 1.0) for name in STAGES[: n + 1]) for n in range(3)
    ]
    assert policy.spec.corrector == tuple((name, 1.0) for name in STAGES) and policy.spec.aligned == ()
    assert all(bool(p.abs().max() > 0) for name in STAGES for p in lora.parameters(policy.model, name))
    assert figures["steps"] == 9 and {"warm_up/loss", "equal/loss", "contrast/loss"} <= set(figures)


def test_a_stage_that_is_done_is_loaded_and_what_fails_leaves_nothing(
    make_policy: Make, labelled: list[Pair], values: dict[str, Any], given: Make, make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Stop(Exception):
        pass

    expected = MetaAligner(**values).fit(make_policy(), given(labelled), asking, make_fitting("whole"))
    original, cut = Imitation.__call__, make_policy()

    def interrupted(self: Imitation, batch: dict[str, list[int]]) -> tuple[Tensor, Mapping[str, Tensor]]:
        if STAGES[2] in self.rows:
            raise Stop
        return original(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Imitation, "__call__", interrupted)
        MetaAligner(**values).fit(cut, given(labelled), asking, make_fitting("cut"))
    assert cut.configs == {} and cut.spec.corrector == ()
    found = seen(monkeypatch)
    torch.manual_seed(3)
    assert MetaAligner(**values).fit(make_policy(), given(labelled), asking, make_fitting("cut")) == expected
    assert set(found) == {STAGES[2]}
    files = [sorted(make_fitting(name).folder.rglob("*.safetensors")) for name in ("whole", "cut")]
    assert len(files[0]) == 3
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True))


def test_without_anything_equal_there_is_no_second_stage(
    policy: Policy, labelled: list[Pair], values: dict[str, Any], given: Make, make_fitting: Make
) -> None:
    with pytest.raises(UserError, match=r"within alignment\.metaaligner\.equal_gap=0\.1 in any dimension"):
        MetaAligner(**{**values, "equal_gap": 0.1}).fit(policy, given(labelled), asking, make_fitting())
