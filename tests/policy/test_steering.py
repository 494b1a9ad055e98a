"""Steering vectors against a hooked model of transformers, against one another, and in the decoder's shared rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.plans import Chat, Deltas, Plan, Sampling, Stream
from personalign.policy import lora
from personalign.policy.logprobs import Branches, Pooling, answer_states
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.policy.reference import answer_features, fingerprint, standing
from personalign.policy.tiny import random_llama
from personalign.policy.trunk import trunk_of
from personalign.types import Message

IDS = torch.arange(3, 35).view(4, 8)
PROMPT = (Chat((Message("user", "What is tea?"),)),)


def filled(policy: Policy, name: str, layer: int, seed: int) -> torch.Tensor:
    vector = policy.add_vector(name, layer).vector
    with torch.no_grad():
        vector.copy_(torch.randn(32, generator=torch.Generator().manual_seed(seed)))
    return vector.detach()


def logits(policy: Policy) -> torch.Tensor:
    return policy.logits(policy.hidden(input_ids=IDS, use_cache=False))


def hooked(added: dict[int, torch.Tensor], ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The logits of the plain model of transformers with a vector added to each named layer's output."""
    model: Any = random_llama(32, 2, 4, 2, 512, 0).to(dtype)
    for layer, vector in added.items():
        model.model.layers[layer].register_forward_hook(lambda m, a, out, v=vector: out + v.to(dtype))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("grad", [False, True])
def test_mixed_rows_equal_a_hooked_model_row_by_row(tiny: Policy, grad: bool) -> None:
    a, b, c = filled(tiny, "a", 0, 0), filled(tiny, "b", 0, 1), filled(tiny, "c", 1, 2)
    rows: list[Deltas] = [(("a", 0.5),), (), (("a", 1.0), ("b", -2.0), ("c", 1.5)), (("c", -1.0),)]
    added = [{0: 0.5 * a}, {}, {0: a - 2 * b, 1: 1.5 * c}, {1: -c}]
    tiny.routing.by_row(rows)
    with torch.set_grad_enabled(grad):
        found = logits(tiny)
    for i, vectors in enumerate(added):
        expected = hooked(vectors, IDS[i : i + 1], torch.float64).float()
        torch.testing.assert_close(found[i : i + 1].detach(), expected, atol=1e-4, rtol=1e-4)
    assert float((found[0] - hooked({}, IDS[:1])[0]).detach().abs().max()) > 0.01


def test_two_vectors_are_their_sum_and_zero_is_the_base(tiny: Policy) -> None:
    with torch.no_grad():
        base = logits(tiny)
        a, b = filled(tiny, "a", 1, 0), filled(tiny, "b", 1, 1)
        tiny.add_vector("sum", 1).vector.copy_(0.3 * a - 0.7 * b)
        tiny.add_vector("zero", 1)
        for deltas in ((), (("a", 0.0), ("b", 0.0)), (("zero", 3.0),)):
            with tiny.using(deltas):
                assert torch.equal(logits(tiny), base)
        with tiny.using((("a", 0.3), ("b", -0.7))):
            both = logits(tiny)
        with tiny.using((("sum", 1.0),)):
            torch.testing.assert_close(both, logits(tiny), atol=1e-5, rtol=1e-5)
    assert float((both - base).abs().max()) > 0.01


def test_only_a_rows_own_vector_gets_its_gradient(tiny: Policy) -> None:
    filled(tiny, "a", 0, 0)
    filled(tiny, "b", 0, 1)
    tiny.routing.by_row([(("a", 1.0),), (), (), (("b", -2.0),)])
    logits(tiny).pow(2).sum().backward()
    found = [tiny.vectors[name].vector.grad for name in "ab"]
    for row, name, coefficient, gradient in ((0, "a", 1.0, found[0]), (3, "b", -2.0, found[1])):
        vector = tiny.vectors[name].vector.detach().double().requires_grad_()
        model: Any = random_llama(32, 2, 4, 2, 512, 0).double()
        model.model.layers[0].register_forward_hook(lambda m, a, out, v=vector, c=coefficient: out + c * v)
        model(input_ids=IDS[row : row + 1]).logits.pow(2).sum().backward()
        assert gradient is not None and vector.grad is not None
        torch.testing.assert_close(gradient.double(), vector.grad, atol=1e-2, rtol=1e-3)


def test_vectors_come_and_go_and_the_hashes_know(tiny: Policy) -> None:
    plain, everything = fingerprint(tiny, ()), standing(tiny)
    vector = filled(tiny, "a", 1, 0)
    steered = fingerprint(tiny, (("a", 1.0),))
    assert fingerprint(tiny, ()) == plain and steered != plain and standing(tiny) != everything
    with torch.no_grad():
        vector += 1.0
    assert fingerprint(tiny, (("a", 1.0),)) != steered
    with pytest.raises(UserError, match="no layer 2 to steer behind: 2 of the model"):
        tiny.add_vector("b", 2)
    tiny.reset()
    assert tiny.vectors == {} and standing(tiny) == everything
    with torch.no_grad(), tiny.using((("a", 1.0),)):
        torch.testing.assert_close(logits(tiny), hooked({}, IDS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_decoder_shares_the_rows_below_a_vector_and_no_higher(tiny: Policy, layer: int) -> None:
    filled(tiny, "a", layer, 0)
    filled(tiny, "b", layer, 1)
    tiny.add_adapter("upper", LoRAConfig(4, 8.0, 0.0, ("q_proj", "down_proj"), (1,)))
    for parameter in lora.parameters(tiny.model, "upper"):
        torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(2))
    readers: list[tuple[float, Deltas]] = [
        (1.0, ()),
        (0.8, (("a", 1.0),)),
        (-0.5, (("a", -0.5), ("b", 1.0))),
        (0.6, (("upper", 1.0), ("b", 0.5))),
    ]
    assert trunk_of(tiny, [("same", deltas) for _, deltas in readers]).depth == layer
    plan = Plan(tuple(Stream(PROMPT, w, deltas) for w, deltas in readers), sampling=Sampling(max_new_tokens=8))
    (found,) = Decoder(tiny, 4).generate([Job("q", plan)])
    ids, logprobs = tiny.encode(PROMPT[0].messages), []
    for token in found.tokens:
        score = torch.zeros(259, dtype=torch.float64)
        for weight, deltas in readers:
            with torch.no_grad(), tiny.using(deltas):
                score += weight * tiny.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        assert int(score.argmax()) == token
        logprobs.append(float(score.log_softmax(-1).max()))
        ids.append(token)
    assert found.logprobs == pytest.approx(logprobs, abs=1e-3) and logprobs


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_hidden_states_behind_a_layer_are_those_of_transformers(tiny: Policy, pooling: Pooling, tmp_path: Any) -> None:
    rows = [Branches((5, 6, 7), ((30, 31, 2), (40, 2))), Branches((9, 10), ((50, 51, 52, 53, 2),))]
    model: Any = random_llama(32, 2, 4, 2, 512, 0)
    expected = []
    with torch.no_grad():
        for row in rows:
            for answer in row.answers:
                ids = torch.tensor([[*row.prompt, *answer]])
                # transformers gives the embeddings first, and the last layer's output behind the final norm.
                states = model(input_ids=ids, output_hidden_states=True).hidden_states[1][0, len(row.prompt) :]
                expected.append(states.mean(0) if pooling == "mean" else states[-1])
        found = answer_states(tiny, rows, pooling, 0)
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-4)
        behind = [answer_features(tiny, rows, (), pooling, tmp_path, "", layer) for layer in (0, 1, None, 0)]
    torch.testing.assert_close(torch.cat(behind[0]), found, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(behind[0], behind[3], strict=True)), "kept by layer"
    assert not torch.allclose(behind[1][0], behind[2][0]), "the last layer's output has no norm yet"
