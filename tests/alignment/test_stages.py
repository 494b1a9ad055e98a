"""What each stage trains, on what, and what it leaves in the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch

from personalign.alignment import stance_head
from personalign.alignment.contrasts import contrasting
from personalign.alignment.dpo import DPO
from personalign.alignment.hidden_head import PadHiddenHead
from personalign.alignment.labels import occurring
from personalign.alignment.pad import Pad, adapter_names
from personalign.alignment.sft import SFT
from personalign.alignment.stance_head import PadStanceHead, feature_margins, said
from personalign.alignment.training import share
from personalign.contracts import UserError
from personalign.policy import lora
from personalign.policy.heads import HiddenHead, StanceHead
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.policy import Policy
from personalign.policy.tiny import random_llama
from personalign.runtime.fitting import Fitting
from personalign.types import Event, Message, Pair, Request

Make = Callable[..., Any]


def weights(policy: Policy, name: str) -> list[torch.Tensor]:
    return [p.detach().clone() for p in lora.parameters(policy.model, name)]


def close(one: list[torch.Tensor], other: list[torch.Tensor], tolerance: float) -> bool:
    return all(float((a - b).abs().max()) < tolerance for a, b in zip(one, other, strict=True))


def test_dpo_prefers_what_was_chosen(
    policy: Policy, pairs: list[Pair], dpo_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    stage = DPO(**{**dpo_values, "steps": 20})
    figures = stage.fit(policy, given(pairs), render, make_fitting())
    assert figures["accuracy"] > 0.9 and figures["margin"] > 0.5
    assert policy.spec.aligned == (("aligned", 1.0),)
    prompt = tuple(policy.encode(pairs[0].request.messages))
    row = Branches(prompt, tuple(tuple(policy.encode_answer(t)) for t in (pairs[0].chosen, pairs[0].rejected)))
    base, after = [], []
    for deltas, into in (((), base), (policy.spec.aligned, after)):
        with policy.using(deltas):
            into += [float(a.sum()) for a in answer_logprobs(policy, [row])]
    assert (after[0] - base[0]) - (after[1] - base[1]) > 1


def test_the_prompt_is_what_generation_renders(
    make_policy: Make, pairs: list[Pair], dpo_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    asked: list[str] = []

    def conditioned(request: Request) -> tuple[Message, ...]:
        asked.append(request.id)
        return (Message("system", f"{request.user} likes tea."), *request.messages)

    plain, told = make_policy(), make_policy()
    DPO(**dpo_values).fit(plain, given(pairs), render, make_fitting())
    DPO(**dpo_values).fit(told, given(pairs), conditioned, make_fitting())
    assert set(asked) == {pair.request.id for pair in pairs}
    assert not close(weights(plain, "aligned"), weights(told, "aligned"), 1e-6)


def test_the_size_of_a_micro_batch_changes_nothing(
    make_policy: Make, pairs: list[Pair], dpo_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    found = []
    for micro in (1, 2, 3, 4):
        policy = make_policy()
        DPO(**dpo_values).fit(policy, given(pairs), render, make_fitting(f"micro{micro}", micro_batch=micro))
        found.append(weights(policy, "aligned"))
    assert all(close(found[0], other, 2e-4) for other in found[1:])
    assert torch.equal(found[1][0], found[2][0])  # three do not divide a batch of four


def test_sft_then_dpo_learns_on_top_of_it(
    policy: Policy,
    pairs: list[Pair],
    sft_values: dict[str, Any],
    dpo_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
) -> None:
    first = SFT(**{**sft_values, "steps": 20}).fit(policy, given(pairs), render, make_fitting())
    kept = weights(policy, "sft")
    assert policy.spec.aligned == (("sft", 1.0),)
    curve = make_fitting().folder / "checkpoints"
    assert len(list(curve.iterdir())) == 1 and set(first) == {"steps", "loss"}
    DPO(**dpo_values).fit(policy, given(pairs), render, make_fitting())
    assert policy.spec.aligned == (("sft", 1.0), ("aligned", 1.0))
    assert all(torch.equal(a, b) for a, b in zip(kept, weights(policy, "sft"), strict=True))


def test_sft_makes_chosen_answers_likelier(
    policy: Policy, pairs: list[Pair], sft_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    rows = [Branches(tuple(policy.encode(p.request.messages)), (tuple(policy.encode_answer(p.chosen)),)) for p in pairs]

    def mean() -> float:
        return float(torch.cat([answer_logprobs(policy, [row])[0] for row in rows]).mean())

    before = mean()
    SFT(**{**sft_values, "steps": 20}).fit(policy, given(pairs), render, make_fitting())
    with policy.using(policy.spec.aligned):
        assert mean() > before + 0.5


@pytest.mark.parametrize(("depth", "layers"), [(1.0, {0, 1}), (0.5, {1}), (0.0, {1})])
def test_adapters_lie_in_the_upper_layers(
    depth: float,
    layers: set[int],
    policy: Policy,
    pairs: list[Pair],
    dpo_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
    make_policy: Make,
) -> None:
    stage = DPO(**{**dpo_values, "depth": depth})
    stage.fit(policy, given(pairs), render, make_fitting())
    again = make_policy()
    stage.fit(again, given(pairs), render, make_fitting())
    for one in (policy, again):
        paths = [path for path, layer in lora.layers(one.model) if "aligned" in layer.deltas]
        assert {int(path.split(".")[2]) for path in paths} == layers


def test_a_trained_adapter_is_a_peft_folder(
    policy: Policy, pairs: list[Pair], dpo_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    DPO(**dpo_values).fit(policy, given(pairs), render, make_fitting())
    (config,) = make_fitting().folder.rglob("adapter_config.json")
    theirs = peft.PeftModel.from_pretrained(random_llama(32, 2, 4, 2, 512, 0), str(config.parent))
    ids = torch.arange(3, 19).view(2, 8)
    with torch.no_grad(), policy.using(policy.spec.aligned):
        ours = policy.logits(policy.hidden(input_ids=ids, use_cache=False))
        torch.testing.assert_close(ours, theirs(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_features_trained_side_by_side_are_what_each_is_alone(
    make_policy: Make, pairs: list[Pair], pad_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    both = make_policy()
    figures = Pad(**pad_values).fit(both, given(pairs), render, make_fitting("both"))
    assert both.spec.features == {"warmth": (("feature-warmth", 1.0),), "grade": (("feature-grade", 1.0),)}
    assert {"warmth/loss", "grade/accuracy", "warmth/margin", "loss"} <= set(figures)
    for dimension in ("warmth", "grade"):
        alone = make_policy()
        values = {**pad_values, "dimensions": [dimension]}
        one = Pad(**values).fit(alone, given(pairs), render, make_fitting(dimension))
        name = f"feature-{dimension}"
        assert close(weights(both, name), weights(alone, name), 2e-4)
        assert one["loss"] == pytest.approx(figures[f"{dimension}/loss"], abs=1e-4)
        assert float(weights(both, name)[1].abs().max()) > 0.01


def test_features_learn_their_own_dimension(
    policy: Policy, pairs: list[Pair], pad_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    figures = Pad(**{**pad_values, "steps": 25}).fit(policy, given(pairs), render, make_fitting())
    assert figures["warmth/accuracy"] > 0.9 and figures["grade/accuracy"] > 0.9


def labelled(number: int, warmth: float, text: str = "A.") -> Pair:
    request = Request(id=f"r{number}", user=f"u{number}", messages=(Message("user", "Tea?"),))
    return Pair(id=f"p{number}", request=request, chosen=text, rejected=f"{number}", labels={"warmth": warmth})


def test_pairs_are_relabelled_most_contrasting_first_and_taken_once() -> None:
    swapped = Pair(id="s", request=labelled(1, 0).request, chosen="1", rejected="A.", labels={"warmth": -0.9})
    pairs = [labelled(0, 0.4), labelled(1, 0.9), labelled(2, -2.0), labelled(3, 0.0), swapped]
    prompts = [pair.request.messages for pair in pairs]
    found = contrasting(pairs, prompts, "warmth", 0.4, None, "pad")
    assert [(p.chosen, p.rejected) for p in found] == [("2", "A."), ("A.", "1"), ("A.", "0")]
    assert [p.id for p in contrasting(pairs, prompts, "warmth", 0.5, 1, "pad")] == ["p2"]
    apart = [(Message("user", str(i)),) for i in range(5)]
    assert len(contrasting(pairs, apart, "warmth", 0.0, None, "pad")) == 4  # zero tells nothing
    with pytest.raises(UserError, match=r"differs by 3\.0 or more in 'warmth': lower alignment\.pad\.min_gap"):
        contrasting(pairs, prompts, "warmth", 3.0, None, "pad")


def test_dimensions_are_those_of_the_labels() -> None:
    assert occurring(["warmth"], None, "pad") == ["warmth"] == occurring(["warmth"] * 2, ["warmth"], "pad")
    with pytest.raises(UserError, match="'warmht', but no pair has such a label: did you mean 'warmth'"):
        occurring(["warmth"], ["warmht"], "pad")
    with pytest.raises(UserError, match="no labels per dimension"):
        occurring([], None, "pad")


def test_adapter_names_bear_any_dimension() -> None:
    assert adapter_names("f", ["warmth", "a.b", "a b"]) == ["f-warmth", "f-a_b-1", "f-a_b-2"]


def test_names_that_clash_or_cannot_be_files_are_refused(
    policy: Policy, pairs: list[Pair], dpo_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    DPO(**{**dpo_values, "steps": 1}).fit(policy, given(pairs), render, make_fitting())
    with pytest.raises(UserError, match="two stages of alignment train an adapter 'aligned'"):
        DPO(**{**dpo_values, "steps": 2}).fit(policy, given(pairs), render, make_fitting())
    with pytest.raises(UserError, match=r"'\.\./x' is no name of an adapter"):
        DPO(**{**dpo_values, "adapter": "../x"}).fit(policy, given(pairs), render, make_fitting())
    assert policy.spec.aligned == (("aligned", 1.0),)


def test_missing_pairs_and_targets_are_said(
    policy: Policy, pairs: list[Pair], dpo_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    with pytest.raises(UserError, match="stage 'aligned' has no pair to train on"):
        DPO(**dpo_values).fit(policy, given([]), render, make_fitting())
    with pytest.raises(UserError, match=r"no linear layer of tiny-.* is named q_prj"):
        DPO(**{**dpo_values, "targets": ["q_prj"]}).fit(policy, given(pairs), render, make_fitting())
    assert policy.spec.adapters == ()


def test_a_batch_that_processes_cannot_share_is_refused(
    policy: Policy, pairs: list[Pair], dpo_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    trainer = {**make_fitting().trainer, "devices": 3, "strategy": "ddp", "process_group_backend": "gloo"}
    with pytest.raises(UserError, match="a batch of 4 pairs cannot be shared by 3 processes"):
        DPO(**dpo_values).fit(policy, given(pairs), render, make_fitting(trainer=trainer))
    trainer = {**trainer, "devices": 2, "strategy": "none"}
    with pytest.raises(UserError, match="several devices need a strategy"):
        DPO(**dpo_values).fit(policy, given(pairs), render, make_fitting(trainer=trainer))


def test_no_gpu_is_one_plain_message(
    policy: Policy, pairs: list[Pair], dpo_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    trainer = {**make_fitting().trainer, "accelerator": "gpu"}
    with pytest.raises(UserError, match=r"trainer\.accelerator gpu cannot be used here.*choose trainer=cpu"):
        DPO(**dpo_values).fit(policy, given(pairs), render, make_fitting(trainer=trainer))


def test_a_limit_takes_from_all_users_in_turn(pairs: list[Pair]) -> None:
    def of(user: str, number: int) -> Pair:
        return replace(pairs[0], id=f"{user}{number}", request=replace(pairs[0].request, user=user))

    many = [of("a", i) for i in range(5)] + [of("b", 0)] + [of("c", i) for i in range(3)]
    assert [pair.id for pair in share(many, 5)] == ["a0", "a1", "b0", "c0", "c1"]
    assert [pair.id for pair in share(many, 7)] == ["a0", "a1", "a2", "b0", "c0", "c1", "c2"]
    assert share(many, None) == many == share(many, 100)


def statement(user: str, text: str, time: float = 1.0) -> Event:
    return Event(id=f"{user}{time}", user=user, time=time, kind="statement", payload={"text": text})


def test_the_hidden_head_learns_while_the_policy_is_frozen(
    policy: Policy,
    pairs: list[Pair],
    dpo_values: dict[str, Any],
    head_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
    make_policy: Make,
) -> None:
    DPO(**{**dpo_values, "steps": 2}).fit(policy, given(pairs), render, make_fitting())
    kept = weights(policy, "aligned")
    stage = PadHiddenHead(**{**head_values, "steps": 10, "weight_decay": 0.0})
    figures = stage.fit(policy, given(pairs), render, make_fitting())
    head = policy.heads["pad"]
    assert isinstance(head, HiddenHead) and policy.spec.heads == ("pad",)
    assert figures["loss"] < 0.6 and float((head.weight - torch.eye(32)).abs().max()) > 0.01
    assert all(torch.equal(a, b) for a, b in zip(kept, weights(policy, "aligned"), strict=True))
    again = make_policy()
    DPO(**{**dpo_values, "steps": 2}).fit(again, given(pairs), render, make_fitting())
    assert stage.fit(again, given(pairs), render, make_fitting()) == figures
    assert torch.equal(again.heads["pad"].weight, head.weight)  # type: ignore[arg-type]


def test_the_stance_head_tells_opposed_users_apart(
    policy: Policy,
    pairs: list[Pair],
    pad_values: dict[str, Any],
    head_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = {"u0": "Warm, please.", "u1": "Be cold and short!", "u2": "Warm, please."}
    data = given(pairs, [statement(user, text) for user, text in texts.items()])
    Pad(**{**pad_values, "steps": 1}).fit(policy, data, render, make_fitting())
    users = [pair.request.user for pair in pairs if pair.request.user in texts]
    wanted = torch.tensor([[-1.0, 0.0] if user == "u1" else [1.0, 0.0] for user in users])
    monkeypatch.setattr(stance_head, "feature_margins", lambda policy, rows: wanted[: len(rows)] * 5)
    stage = PadStanceHead(**{**head_values, "beta": 1.0, "steps": 40, "learning_rate": 0.05})
    figures = stage.fit(policy, data, render, make_fitting())
    head = policy.heads["stance"]
    assert isinstance(head, StanceHead) and head.dimensions == ("warmth", "grade")
    warm, cold = head.stance(policy, texts["u0"]).as_dict(), head.stance(policy, texts["u1"]).as_dict()
    assert figures["accuracy"] == 1.0 and warm["warmth"] > 0.5 and cold["warmth"] < -0.5
    assert policy.spec.heads == ("stance",)


def test_feature_margins_equal_the_log_ratios(
    policy: Policy,
    pairs: list[Pair],
    pad_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
) -> None:
    Pad(**pad_values).fit(policy, given(pairs), render, make_fitting())
    prompt = tuple(policy.encode(pairs[0].request.messages))
    row = Branches(prompt, (tuple(policy.encode_answer("Yes.")), tuple(policy.encode_answer("No way."))))
    found = feature_margins(policy, [row])

    def sums(deltas: Any) -> list[float]:
        with policy.using(deltas):
            return [float(a.sum()) for a in answer_logprobs(policy, [row])]

    base = sums(())
    for k, deltas in enumerate(policy.spec.features.values()):
        chosen, rejected = sums(deltas)
        assert float(found[0, k]) == pytest.approx((chosen - base[0]) - (rejected - base[1]), abs=1e-3)


def test_a_statement_counts_from_when_it_was_made(pairs: list[Pair], given: Make) -> None:
    user = pairs[0].request.user
    data = given(pairs, [statement(user, "old", 1.0), statement(user, "new", 5.0), statement(user, "late", 10.0)])
    assert said(data, pairs[0]) == "new"
    assert said(given(pairs), pairs[0]) is None


def test_no_statements_is_one_plain_message(
    policy: Policy, pairs: list[Pair], head_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    with pytest.raises(UserError, match="no user with training pairs stated a preference"):
        PadStanceHead(**head_values).fit(policy, given(pairs), render, make_fitting())


@pytest.mark.parametrize("stage", ["dpo", "pad"])
def test_an_answer_longer_than_allowed_is_cut(
    stage: str,
    policy: Policy,
    pairs: list[Pair],
    dpo_values: dict[str, Any],
    pad_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Callable[..., Fitting],
) -> None:
    limits = {"steps": 1, "max_prompt": 40, "max_answer": 5}
    part = DPO(**{**dpo_values, **limits}) if stage == "dpo" else Pad(**{**pad_values, **limits})
    assert part.fit(policy, given(pairs), render, make_fitting())["steps"] == 1
