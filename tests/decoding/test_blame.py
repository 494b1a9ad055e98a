"""A score that is no number ends the run with the name of what is to blame, instead of a text of nonsense."""

from __future__ import annotations

import pytest
import torch

from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.plans import Candidates, Chat, Combine, Plan, Sampling, Stream
from personalign.policy.lora import LoRAConfig, parameters
from personalign.policy.policy import Policy
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
