"""A score that is no number ends the run with the name of what is to blame, instead of a text of nonsense."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import vocabularies

from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.plans import Args, Candidates, Chat, Combine, Plan, Sampling, Soft, Stream, Value
from personalign.policy.features import Reader
from personalign.policy.lora import LoRAConfig, parameters
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import BradleyTerryHead
from personalign.policy.soft import SoftHead
from personalign.types import Message

PROMPT = (Chat((Message("user", "Hi"),)),)
BAD, GOOD = (("bad", 0.5),), (("good", 1.0),)


@pytest.fixture
def spoilt(tiny: Policy) -> Policy:
    """One sound adapter, and one with a single weight that is not a number."""
    for name in ("good", "bad"):
        tiny.add_adapter(name, LoRAConfig(2, 4.0, 0.0, ("q_proj",)))
    with torch.no_grad():
        parameters(tiny.model, "bad")[-1][0, 0] = float("nan")
    tiny.stop_ids = ()
    return tiny


def decode(policy: Policy, *plans: Plan) -> None:
    Decoder(policy, 8).generate([Job(f"r{i}", plan) for i, plan in enumerate(plans)])


@pytest.mark.parametrize("rule", [Candidates(), Candidates("top_k", 5), Candidates("plausible", fraction=0.1)])
@pytest.mark.parametrize("combine", ["log_linear", "forward_kl", "jensen_shannon"])
@pytest.mark.parametrize("read", [False, True], ids=["guide", "read"])
def test_an_adapter_is_named(spoilt: Policy, rule: Candidates, combine: Combine, read: bool) -> None:
    streams = Stream(PROMPT, 0.5, GOOD), Stream(PROMPT, 0.5, BAD)
    plan = Plan(streams[::-1] if read else streams, rule, Sampling(temperature=0.7), combine=combine)
    with pytest.raises(UserError, match=r"request 'r0': the score of token 1 .* adapter 'bad' are not all finite"):
        decode(spoilt, plan)
    assert spoilt.routing.slices == []


def test_those_who_share_its_batch_are_not_blamed(spoilt: Policy) -> None:
    with pytest.raises(UserError, match=r"weights of adapter 'bad' "):
        decode(spoilt, Plan((Stream(PROMPT, 1.0, GOOD),)), Plan((Stream(PROMPT, 1.0, BAD),)))
    decode(spoilt, Plan((Stream(PROMPT, 1.0, GOOD),), sampling=Sampling(max_new_tokens=2)))


def test_a_stream_is_named_where_no_adapter_is_to_blame(spoilt: Policy) -> None:
    spoilt.heads["value"] = torch.nn.Linear(32, 32)
    with torch.no_grad():
        spoilt.heads["value"].bias.fill_(float("inf"))
    streams = Stream(PROMPT), Stream(PROMPT, 0.5, GOOD, "value")
    expected = r"log-probabilities of the stream of 1 x good on a chat prompt through head 'value';"
    with pytest.raises(UserError, match=expected):
        decode(spoilt, Plan(streams))
    with torch.no_grad():
        spoilt.embedding.weight[5, 3] = float("nan")
    with pytest.raises(UserError, match=r"of the stream of the base on a chat prompt; see whether"):
        decode(spoilt, Plan((Stream(PROMPT),)))


def test_weights_beyond_numbers_are_told(spoilt: Policy) -> None:
    with pytest.raises(UserError, match=r"though every stream's is: the plan's weights are 1, 1e\+39; take smaller"):
        decode(spoilt, Plan((Stream(PROMPT), Stream(PROMPT, 1e39, GOOD))))


def test_one_that_comes_to_speak_later_is_found_then(spoilt: Policy) -> None:
    """Between two tokens at which all streams speak, the candidates' stream alone is read."""
    streams = Stream(PROMPT), Stream(PROMPT, 0.5, GOOD)
    plan = Plan(streams, Candidates("top_k", 5), Sampling(max_new_tokens=6), score_every=3)
    forward, calls = spoilt.hidden, []

    def spoiling(**told: object) -> torch.Tensor:
        calls.append(told)
        states = forward(**told)
        return (
            states if len(calls) < 3 else torch.where(torch.arange(len(states))[:, None, None] == 1, torch.nan, states)
        )

    spoilt.hidden = spoiling  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"the score of token 4 is not a number"):
        decode(spoilt, plan)


# --- what is not finite, in every kind of stream -----------------------------------------------------

LOG: Combine = "log_linear"
FEW = Candidates("top_k", 5)
EVERYWHERE: list[tuple[Candidates, Combine]] = [
    (rule, combine)
    for rule in (Candidates(), FEW, Candidates("plausible", fraction=0.1))
    for combine in (LOG, "forward_kl", "jensen_shannon")
]


class Extreme(BradleyTerryHead):
    """Rates some candidates so, and others as it should."""

    def __init__(self, reward: float) -> None:
        super().__init__(32, Reader((), "last", 300, 50))
        torch.nn.init.normal_(self.weight, generator=torch.Generator().manual_seed(0))
        self.reward = reward

    def rewards(self, features: torch.Tensor, user: torch.Tensor | None = None) -> torch.Tensor:
        sound = super().rewards(features, user)
        return torch.where(torch.cos(37.0 * sound) > 0, self.reward, sound)


class Vectors(SoftHead):
    """One vector for everybody."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.tokens, self.vectors = 1, torch.nn.Parameter(torch.full((1, 32), number))

    def forward(self, asked: Sequence[Args]) -> torch.Tensor:
        return self.vectors.expand(len(asked), -1, -1)


def biased(policy: Policy, tokens: slice, number: float) -> Policy:
    """The same model, whose head adds `number` to the logits of some tokens."""
    model = vocabularies.copied(policy)
    head = torch.nn.Linear(32, policy.embedding.num_embeddings)
    head.weight = model.get_output_embeddings().weight
    torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[tokens] = number
    model.set_output_embeddings(head)
    made = Policy(model, policy.tokenizer, policy.label)
    made.stop_ids = ()
    return made


def base(policy: Policy, number: float) -> tuple[Policy, Stream, str]:
    return biased(policy, slice(200, 201), number), Stream(PROMPT), "of the stream of the base on a chat prompt"


def adapter(policy: Policy, number: float) -> tuple[Policy, Stream, str]:
    policy.add_adapter("bad", LoRAConfig(2, 4.0, 0.0, ("q_proj",)))
    with torch.no_grad():
        parameters(policy.model, "bad")[-1][0, 0] = number
    return policy, Stream(PROMPT, 1.0, BAD), "weights of adapter 'bad'"


def vector(policy: Policy, number: float) -> tuple[Policy, Stream, str]:
    with torch.no_grad():
        policy.add_vector("push", 0).vector[3] = number
    return policy, Stream(PROMPT, 1.0, (("push", 1.0),)), "of the stream of 1 x push on a chat prompt"


def head(policy: Policy, number: float) -> tuple[Policy, Stream, str]:
    policy.heads["value"] = torch.nn.Linear(32, 32)
    with torch.no_grad():
        policy.heads["value"].bias[3] = number
    return policy, Stream(PROMPT, 1.0, (), "value"), "of the stream of the base on a chat prompt through head 'value'"


def soft(policy: Policy, number: float) -> tuple[Policy, Stream, str]:
    policy.heads["soft"] = Vectors(number)
    return policy, Stream((Soft("soft"), *PROMPT)), "of the stream of the base on a soft and chat prompt"


def value(policy: Policy, number: float) -> tuple[Policy, Stream, str]:
    policy.heads["rater"] = Extreme(number)
    return policy, Stream(PROMPT, 1.0, (), Value("rater")), "the values that head 'rater' reads in the base"


def guest(policy: Policy, number: float) -> tuple[Policy, Stream, str]:
    policy.add_guest("guide", biased(vocabularies.permuted(policy, 1), slice(0, None, 2), number))
    return policy, Stream(PROMPT, model="guide"), "of the stream of the base of model guide on a chat prompt"


KINDS = [base, adapter, vector, head, soft, value, guest]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_number_that_is_not_finite_is_told_with_its_stream(
    tiny: Policy, kind: Callable[[Policy, float], tuple[Policy, Stream, str]], number: float
) -> None:
    """Though the token that it is about may never be chosen, and with weights of either sign."""
    tiny.stop_ids = ()
    policy, spoilt, expected = kind(tiny, number)
    sound = Stream((Chat((Message("user", "Hello"),)),))
    few = isinstance(spoilt.head, Value) or spoilt.model is not None
    for rule, combine in [(FEW, LOG)] if few else EVERYWHERE:
        for weight, temperature in ((0.5, 0.0), (-0.5, 0.7)):
            plan = Plan((sound, replace(spoilt, weight=weight)), rule, Sampling(temperature), combine=combine)
            with pytest.raises(UserError, match=rf"request 'r0': the score of token 1 .*{expected}"):
                decode(policy, plan)
        if not few:
            with pytest.raises(UserError, match=expected):
                decode(policy, Plan((spoilt,), rule, combine=combine))
    assert kind is base or decode(policy, Plan((sound,), sampling=Sampling(max_new_tokens=2))) is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_number_that_is_only_large_is_none_of_it(
    tiny: Policy, kind: Callable[[Policy, float], tuple[Policy, Stream, str]]
) -> None:
    tiny.stop_ids = ()
    policy, stream, _ = kind(tiny, -1e4)
    few = isinstance(stream.head, Value) or stream.model is not None
    for rule, combine in [(FEW, LOG)] if few else EVERYWHERE:
        decode(policy, Plan((Stream(PROMPT), stream), rule, Sampling(max_new_tokens=2), combine=combine))
