"""The corrector's stage: what it learns from which pairs, that it serves nobody but drafts, and that it is SFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from personalign.alignment.aligner import Aligner, copied
from personalign.alignment.sft import SFT
from personalign.contracts import UserError
from personalign.policy import lora
from personalign.policy.policy import Policy
from personalign.types import Message, Messages, Pair, Request

Make = Callable[..., Any]


@pytest.fixture
def values(sft_values: dict[str, Any]) -> dict[str, Any]:
    return {**sft_values, "adapter": "aligner", "copies": 0.0}


def correcting(request: Request, targets: Mapping[str, float] | None = None, draft: str | None = None) -> Messages:
    asked = request.messages[-1].content
    return (Message("user", asked if draft is None else f"{request.user} wants better than {draft} for {asked}"),)


def weights(policy: Policy, name: str) -> list[torch.Tensor]:
    return [p.detach().clone() for p in lora.parameters(policy.model, name)]


def test_it_is_fine_tuning_on_the_chosen_answer_behind_the_rejected_one(
    make_policy: Make, pairs: list[Pair], values: dict[str, Any], given: Make, make_fitting: Make
) -> None:
    """Equal to SFT on pairs whose request is the correction, on top of nothing; whatever else was trained."""
    one, other = make_policy(), make_policy()
    figures = Aligner(**values).fit(one, given(pairs), correcting, make_fitting("one"))
    asked = [replace(p, request=replace(p.request, messages=correcting(p.request, draft=p.rejected))) for p in pairs]
    sft = {name: value for name, value in values.items() if name != "copies"}
    expected = SFT(**sft).fit(other, given(asked), lambda request: request.messages, make_fitting("other"))
    assert figures == expected
    for a, b in zip(weights(one, "aligner"), weights(other, "aligner"), strict=True):
        assert torch.equal(a, b)
    assert (one.spec.corrector, one.spec.aligned) == ((("aligner", 1.0),), ())
    before = make_policy()
    SFT(**{**sft, "adapter": "sft"}).fit(before, given(pairs), lambda request: request.messages, make_fitting("sft"))
    Aligner(**values).fit(before, given(pairs), correcting, make_fitting("sft"))
    assert all(torch.equal(a, b) for a, b in zip(weights(before, "aligner"), weights(one, "aligner"), strict=True))
    assert before.spec.aligned == (("sft", 1.0),)


def test_of_a_part_of_the_pairs_the_chosen_answer_is_to_be_kept(
    policy: Policy, pairs: list[Pair], values: dict[str, Any], given: Make, make_fitting: Make
) -> None:
    drafts: list[tuple[str, str | None]] = []

    def spy(request: Request, targets: Mapping[str, float] | None = None, draft: str | None = None) -> Messages:
        drafts.append((request.id, draft))
        return correcting(request, targets, draft)

    Aligner(**{**values, "copies": 0.34, "steps": 1}).fit(policy, given(pairs), spy, make_fitting())
    rejected = [(pair.request.id, pair.rejected) for pair in pairs]
    assert drafts == [*rejected, *((pair.request.id, pair.chosen) for pair in pairs[:4])], "one of each user first"
    assert copied(pairs, 0.0) == [] and [p.chosen for p in copied(pairs, 1.0)] == [p.chosen for p in pairs]


def test_it_learns_to_correct(
    policy: Policy, pairs: list[Pair], values: dict[str, Any], given: Make, make_fitting: Make
) -> None:
    def likelihood(pair: Pair) -> float:
        prompt, answer = policy.encode(correcting(pair.request, draft=pair.rejected)), policy.encode_answer(pair.chosen)
        with policy.using(policy.spec.corrector), torch.no_grad():
            logp = policy.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return sum(logp[len(prompt) - 1 + i, t].item() for i, t in enumerate(answer)) / len(answer)

    before = [likelihood(pair) for pair in pairs[:4]]
    Aligner(**{**values, "steps": 20}).fit(policy, given(pairs), correcting, make_fitting())
    after = [likelihood(pair) for pair in pairs[:4]]
    assert all(b > a + 0.3 for a, b in zip(before, after, strict=True))


def test_a_finished_stage_is_loaded_and_another_draft_is_another_stage(
    make_policy: Make, pairs: list[Pair], values: dict[str, Any], given: Make, make_fitting: Make
) -> None:
    first = Aligner(**values).fit(make_policy(), given(pairs), correcting, make_fitting())
    (folder,) = (make_fitting().folder / "checkpoints").iterdir()
    stamp, again = folder.stat().st_mtime_ns, make_policy()
    assert Aligner(**values).fit(again, given(pairs), correcting, make_fitting()) == first
    assert [path.stat().st_mtime_ns for path in folder.parent.iterdir()] == [stamp]
    assert again.spec.corrector == (("aligner", 1.0),)
    other = [replace(pair, rejected="Otherwise.") for pair in pairs]
    Aligner(**values).fit(make_policy(), given(other), correcting, make_fitting())
    assert len(list(folder.parent.iterdir())) == 2


def test_without_pairs_there_is_nothing_to_learn(
    policy: Policy, values: dict[str, Any], given: Make, make_fitting: Make
) -> None:
    with pytest.raises(UserError, match="stage 'aligner' has no pair to train on"):
        Aligner(**values).fit(policy, given([]), correcting, make_fitting())
