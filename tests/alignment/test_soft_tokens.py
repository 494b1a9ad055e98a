"""P-DPO: its loss against a float64 transcription, who learns from whom, and what it leaves in the policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from personalign.alignment.dpo import DPO
from personalign.alignment.preference import references
from personalign.alignment.soft_tokens import HEAD, Personal, SoftTokens
from personalign.contracts import UserError
from personalign.decoding.rows import prompt_ids
from personalign.generation.soft_tokens import HEAD as HEAD_OF_GENERATION
from personalign.generation.soft_tokens import SoftTokens as Generation
from personalign.plans import Soft
from personalign.policy import lora
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.policy import Policy
from personalign.policy.tiny import random_llama
from personalign.policy.user_tokens import UserTokens
from personalign.types import Message, Pair, Request, UserState

Make = Callable[..., Any]
USERS = ("u0", "u1", "u2")


@pytest.fixture
def values(dpo_values: dict[str, Any]) -> dict[str, Any]:
    mine = {"user_model": "individual", "tokens": 3, "clusters": 4, "start": "vocabulary", "user_weight": 0.3}
    return {**{k: v for k, v in dpo_values.items() if k != "imitation"}, **mine, "adapter": None}


def branches(policy: Policy, pairs: list[Pair]) -> list[Branches]:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(policy.encode_answer(text))

    return [Branches(tuple(policy.encode(p.request.messages)), (ids(p.chosen), ids(p.rejected))) for p in pairs]


def objective(policy: Policy, pairs: list[Pair], values: dict[str, Any]) -> Personal:
    """The objective on a fresh head, of which user u3 is not in the table."""
    head = SoftTokens(**values).head(policy, USERS, torch.Generator().manual_seed(5))
    policy.heads[HEAD] = head.requires_grad_(True)
    rows = branches(policy, pairs)
    reference = references(policy, {HEAD: rows}, ())[HEAD]
    users = [pair.request.user for pair in pairs]
    return Personal(policy, rows, users, reference, (), values["beta"], values["user_weight"])


def soft_of(head: UserTokens, user: str | None) -> Tensor:
    """The tokens of a user by the paper's formulas, in float64; None is the generic user."""
    row = USERS.index(user) + 1 if user in USERS else 0
    tables = {name: weight.detach().double() for name, weight in head.named_parameters()}
    if "table" in tables:
        return tables["table"][0] + (tables["table"][row] if row else 0.0)
    powers = tables["weights"][row].exp()
    return sum((p / powers.sum() * c for p, c in zip(powers, tables["clusters"], strict=True)), torch.zeros(()))


def transcribed(policy: Policy, pairs: list[Pair], alpha: float, beta: float) -> float:
    """P-DPO pair by pair with an untouched float64 model: one unpadded row for every answer, no sharing, no cache."""
    model, head = random_llama(32, 2, 4, 2, 512, 0).double(), policy.heads[HEAD]
    assert isinstance(head, UserTokens)
    embed = model.get_input_embeddings()

    def logp(soft: Tensor, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Tensor:
        inputs = torch.cat([soft, embed(torch.tensor(prompt + answer))])[None]
        table = model(inputs_embeds=inputs).logits[0].log_softmax(-1)
        start = len(soft) + len(prompt) - 1
        return torch.stack([table[start + i, token] for i, token in enumerate(answer)]).sum()

    total = 0.0
    with torch.no_grad():
        for pair, row in zip(pairs, branches(policy, pairs), strict=True):
            bare = [logp(torch.zeros(0, 32).double(), row.prompt, answer) for answer in row.answers]
            for weight, user in ((alpha, pair.request.user), (1 - alpha, None)):
                ours = [logp(soft_of(head, user), row.prompt, answer) for answer in row.answers]
                m = (ours[0] - bare[0]) - (ours[1] - bare[1])
                total += weight * float(-torch.log(1 / (1 + torch.exp(-beta * m))))
    return total / len(pairs)


@pytest.mark.parametrize("user_model", ["individual", "cluster"])
@pytest.mark.parametrize("user_weight", [0.3, 1.0, 0.0])
def test_the_loss_is_p_dpo(
    policy: Policy, pairs: list[Pair], values: dict[str, Any], user_model: str, user_weight: float
) -> None:
    values |= {"user_model": user_model, "user_weight": user_weight}
    loss, figures = objective(policy, pairs, values)({HEAD: list(range(len(pairs)))})
    assert float(loss.detach()) == pytest.approx(transcribed(policy, pairs, user_weight, values["beta"]), abs=2e-5)
    kinds = {name.partition("/")[0] for name in figures}
    assert kinds == {k for k, w in (("own", user_weight), ("generic", 1 - user_weight)) if w}


def gradients(policy: Policy, values: dict[str, Any], pairs: list[Pair], some: list[int]) -> dict[str, Tensor]:
    asked = objective(policy, pairs, values)
    asked({HEAD: some})[0].backward()
    return {name: weight.grad for name, weight in policy.heads[HEAD].named_parameters() if weight.grad is not None}


def test_a_users_own_tokens_learn_from_their_pairs_alone(
    policy: Policy, pairs: list[Pair], values: dict[str, Any]
) -> None:
    some = [i for i, pair in enumerate(pairs) if pair.request.user in ("u1", "u3")]
    found = gradients(policy, values, pairs, some)["table"]
    assert [bool(row.abs().max() > 0) for row in found] == [True, False, True, False]
    alone = gradients(policy, values, pairs, [i for i in some if pairs[i].request.user == "u1"])["table"]
    torch.testing.assert_close(found[2] * 2, alone[2], atol=1e-6, rtol=1e-4)
    assert all(weight.grad is None for weight in policy.model.parameters())


def test_clusters_are_shared_and_their_weights_are_not(
    policy: Policy, pairs: list[Pair], values: dict[str, Any]
) -> None:
    some = [i for i, pair in enumerate(pairs) if pair.request.user == "u1"]
    found = gradients(policy, {**values, "user_model": "cluster"}, pairs, some)
    assert [bool(row.abs().max() > 0) for row in found["weights"]] == [True, False, True, False]
    assert all(bool(one.abs().max() > 0) for one in found["clusters"])


def opposed(user: str, number: int, turned: bool) -> Pair:
    """What one user chooses, the other rejects, whatever is asked."""
    request = Request(
        id=f"{user}{number}",
        user=user,
        messages=(Message("user", f"Number {number}?"),),
        time=10.0,
        split="train",
    )
    texts = ("A dog sings.", "The rain.")
    return Pair(id=request.id, request=request, chosen=texts[turned], rejected=texts[not turned])


@pytest.mark.parametrize("user_model", ["individual", "cluster"])
def test_opposed_users_reach_opposed_margins(
    make_policy: Make, values: dict[str, Any], given: Make, render: Any, make_fitting: Make, user_model: str
) -> None:
    policy = make_policy()
    pairs = [opposed(user, number, user == "bo") for number in range(4) for user in ("ada", "bo")]
    long = {"steps": 30, "learning_rate": 0.05, "user_weight": 0.7, "user_model": user_model}
    figures = SoftTokens(**{**values, **long}).fit(policy, given(pairs), render, make_fitting())
    assert figures["own/accuracy"] > 0.8 > figures["generic/accuracy"]
    asked = opposed("ada", 9, False).request  # a prompt that nobody was asked
    texts = [tuple(policy.encode_answer(text)) for text in ("A dog sings.", "The rain.")]

    def margin(user: str) -> float:
        stream = Generation().plan(replace(asked, user=user), UserState(), policy.for_user(user)).streams[0]
        bare = Branches(tuple(policy.encode(asked.messages)), tuple(texts))
        told = Branches(prompt_ids(policy, stream), tuple(texts))
        ours, base = ([float(a.sum()) for a in answer_logprobs(policy, [row])] for row in (told, bare))
        return (ours[0] - base[0]) - (ours[1] - base[1])

    assert margin("ada") > 2 and margin("bo") < -2
    assert margin("ada") > margin("cy") == margin("dan") > margin("bo"), "whom nobody knows gets the generic tokens"


def test_generation_puts_before_the_prompt_what_training_put_there(
    policy: Policy, pairs: list[Pair], values: dict[str, Any], given: Make, make_fitting: Make, monkeypatch: Any
) -> None:
    read: list[Branches] = []
    original = Personal._row

    def noted(self: Personal, kind: str, number: int) -> Branches:
        read.append(original(self, kind, number))
        return read[-1]

    monkeypatch.setattr(Personal, "_row", noted)
    part = Generation()
    SoftTokens(**values).fit(policy, given(pairs), lambda r: part.render(r, UserState()), make_fitting())
    asked = [(pair.request, policy.for_user(pair.request.user)) for pair in pairs]
    answering = {prompt_ids(policy, part.plan(request, UserState(), spec).streams[0]) for request, spec in asked}
    generic = policy.soft_ids(Soft(HEAD))
    assert HEAD == HEAD_OF_GENERATION and policy.spec.heads == (HEAD,)
    assert {row.prompt for row in read if row.prompt[:3] != generic} == answering
    assert {row.prompt[3:] for row in read} == {prompt[3:] for prompt in answering}


def test_an_adapter_learns_beside_the_tokens_and_is_kept_beside_them(
    make_policy: Make, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    stage, policy, again = SoftTokens(**{**values, "adapter": "mine"}), make_policy(), make_policy()
    figures = stage.fit(policy, given(pairs), render, make_fitting())
    assert policy.spec.aligned == (("mine", 1.0),) and policy.spec.heads == (HEAD,)
    assert all(bool(p.abs().max() > 0) for p in lora.parameters(policy.model, "mine"))
    assert stage.fit(again, given(pairs), render, make_fitting()) == figures
    for name, one in policy.heads[HEAD].state_dict().items():
        assert torch.equal(one, again.heads[HEAD].state_dict()[name])
    pairs_of_weights = (lora.parameters(p.model, "mine") for p in (policy, again))
    assert all(torch.equal(one, other) for one, other in zip(*pairs_of_weights, strict=True))
    assert not any(p.requires_grad for p in [*policy.model.parameters(), *policy.heads.parameters()])
    (file,) = make_fitting().folder.rglob("soft_tokens.safetensors")
    with safe_open(file, framework="pt") as tensors:
        assert json.loads(tensors.metadata()["users"]) == ["u0", "u1", "u2", "u3"]
    assert [path.parent.parent.name for path in file.parent.rglob("adapter_config.json")] == [file.parent.name]


def test_it_learns_on_top_of_what_was_there(
    policy: Policy,
    pairs: list[Pair],
    values: dict[str, Any],
    dpo_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
) -> None:
    """The reference is the policy as it stands before, without soft tokens."""
    DPO(**dpo_values).fit(policy, given(pairs), render, make_fitting())
    kept = [p.detach().clone() for p in lora.parameters(policy.model, "aligned")]
    seen: list[Tensor] = []
    original = Personal.__call__

    def noted(self: Personal, batch: dict[str, list[int]]) -> tuple[Tensor, Mapping[str, Tensor]]:
        seen.append(self.reference)
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Personal, "__call__", noted)
        SoftTokens(**values).fit(policy, given(pairs), render, make_fitting())
    with policy.using(policy.spec.aligned):
        expected = [[float(a.sum()) for a in answer_logprobs(policy, [row])] for row in branches(policy, pairs)]
    torch.testing.assert_close(seen[0], torch.tensor(expected), atol=1e-3, rtol=1e-4)
    assert policy.spec.aligned == (("aligned", 1.0),)
    assert all(torch.equal(a, b) for a, b in zip(kept, lora.parameters(policy.model, "aligned"), strict=True))


class Stop(Exception):
    """Anything that ends a process."""


@pytest.mark.parametrize("adapter", [None, "mine"])
@pytest.mark.parametrize("call", [5, 11])
def test_interrupted_and_resumed_equals_uninterrupted(
    make_policy: Make,
    pairs: list[Pair],
    values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
    adapter: str | None,
    call: int,
) -> None:
    stage = SoftTokens(**{**values, "adapter": adapter, "checkpoint_every": 2})
    expected = stage.fit(make_policy(), given(pairs), render, make_fitting("whole"))
    passes, original = iter(range(1, 100)), Personal.__call__

    def interrupted(self: Personal, batch: dict[str, list[int]]) -> tuple[Tensor, Mapping[str, Tensor]]:
        if next(passes) == call:
            raise Stop
        return original(self, batch)

    cut = make_policy()
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Personal, "__call__", interrupted)
        stage.fit(cut, given(pairs), render, make_fitting("cut"))
    assert cut.spec.heads == () and cut.spec.adapters == () and len(cut.heads) == 0
    torch.manual_seed(call)
    assert stage.fit(make_policy(), given(pairs), render, make_fitting("cut")) == expected
    files = [sorted(make_fitting(name).folder.rglob("*.safetensors")) for name in ("whole", "cut")]
    assert len(files[0]) == len(files[1]) == (1 if adapter is None else 2)
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True))


@pytest.mark.parametrize("start", ["vocabulary", "uniform"])
def test_vectors_begin_where_it_is_said(policy: Policy, values: dict[str, Any], start: str) -> None:
    stage = SoftTokens(**{**values, "start": start})
    head = stage.head(policy, USERS, torch.Generator().manual_seed(0))
    table: Tensor = nn.Parameter(head.table).detach()  # type: ignore[arg-type]
    assert table.shape == (4, 3, 32)
    vectors = {tuple(vector) for vector in policy.embedding.weight.tolist()}
    assert all((tuple(vector) in vectors) == (start == "vocabulary") for vector in table.flatten(0, 1).tolist())
    assert float(table.abs().max()) <= 0.5 or start == "vocabulary"
    again = stage.head(policy, USERS, torch.Generator().manual_seed(0))
    assert torch.equal(table, again.table)  # type: ignore[arg-type]


def test_soft_tokens_count_as_a_part_of_the_prompt(
    policy: Policy, pairs: list[Pair], values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    longest = max(len(policy.encode(pair.request.messages)) for pair in pairs)
    limits = {"max_prompt": longest + 2, "steps": 1, "batch_size": 12}
    widths: list[int] = []
    forward = policy.hidden

    def noted(**given: Any) -> Tensor:
        widths.extend([] if "input_ids" in given else [given["inputs_embeds"].shape[1]])
        return forward(**given)

    policy.hidden = noted  # type: ignore[method-assign]
    SoftTokens(**{**values, **limits, "max_answer": 1}).fit(policy, given(pairs), render, make_fitting())
    assert max(widths) == longest + 2 + 2, "the longest text, behind which both answers stand, lost one token"
    with pytest.raises(UserError, match=r"tokens=3 leaves no room for text in max_prompt=3"):
        SoftTokens(**{**values, "max_prompt": 3})
    with pytest.raises(UserError, match="max_prompt 500 and max_answer 100 of alignment do not fit"):
        SoftTokens(**{**values, "max_prompt": 500}).fit(policy, given(pairs), render, make_fitting())
