"""Log-probabilities of answers against a plain forward pass of transformers with a softmax over everything."""

from __future__ import annotations

import random

import pytest
import torch

from personalign.policy import vocabulary
from personalign.policy.heads import HiddenHead
from personalign.policy.logprobs import Branches, answer_logprobs, batches
from personalign.policy.policy import Policy
from personalign.policy.tiny import random_llama
from personalign.policy.vocabulary import target_logprobs


def ids(draw: random.Random, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw.randrange(3, 259) for _ in range(draw.randint(low, high)))


def ragged(count: int, answers: int = 2) -> list[Branches]:
    draw = random.Random(count)
    return [Branches(ids(draw, 1, 20), tuple(ids(draw, 1, 15) for _ in range(answers))) for _ in range(count)]


def naive(prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    """One unpadded row through an untouched model, softmax over the whole vocabulary, answer tokens read off."""
    model = random_llama(32, 2, 4, 2, 512, 0)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    table = logits.log_softmax(-1)
    return torch.stack([table[len(prompt) + i - 1, token] for i, token in enumerate(answer)])


def test_branches_equal_single_rows_equal_a_full_softmax(tiny: Policy) -> None:
    rows = ragged(5)
    found = answer_logprobs(tiny, rows)
    single = [Branches(row.prompt, (answer,)) for row in rows for answer in row.answers]
    alone = [answer_logprobs(tiny, [row])[0] for row in single]
    together = answer_logprobs(tiny, single)
    expected = [naive(row.prompt, row.answers[0]) for row in single]
    for result in (found, alone, together):
        assert [len(one) for one in result] == [len(row.answers[0]) for row in single]
        for one, other in zip(result, expected, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_many_answers_and_an_empty_one_share_a_prompt(tiny: Policy) -> None:
    draw = random.Random(1)
    row = Branches(ids(draw, 6, 6), (ids(draw, 4, 4), (), ids(draw, 9, 9), ids(draw, 1, 1)))
    found = answer_logprobs(tiny, [row])
    for one, answer in zip(found, row.answers, strict=True):
        expected = naive(row.prompt, answer) if answer else torch.zeros(0)
        torch.testing.assert_close(one, expected, atol=2e-5, rtol=1e-5)


def test_a_head_maps_the_hidden_state_in_front_of_the_vocabulary(tiny: Policy) -> None:
    rows = ragged(3)
    head = HiddenHead(32)
    tiny.heads["pad"] = head
    before = answer_logprobs(tiny, rows)
    same = answer_logprobs(tiny, rows, head="pad")
    assert all(torch.equal(a, b) for a, b in zip(before, same, strict=True))
    with torch.no_grad():
        head.weight.normal_()
        head.bias.normal_()
        row = Branches(rows[0].prompt, rows[0].answers[:1])
        ids = torch.tensor([row.prompt + row.answers[0]])
        mapped = tiny.hidden(input_ids=ids, use_cache=False)[0] @ head.weight.T + head.bias
        table = tiny.logits(mapped).log_softmax(-1)
    start = len(row.prompt) - 1
    expected = torch.stack([table[start + i, token] for i, token in enumerate(row.answers[0])])
    torch.testing.assert_close(answer_logprobs(tiny, [row], head="pad")[0].detach(), expected, atol=1e-4, rtol=1e-4)


def test_batches_hold_every_row_once_and_stay_within_their_size() -> None:
    rows = ragged(9)
    assert sorted(i for batch in batches(rows, 120) for i in batch) == list(range(9))
    assert all(len(b) * max(rows[i].length for i in b) <= 120 for b in batches(rows, 120))


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_target_logprobs(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "LOGITS", 22)  # two rows at a time
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 11, bias=bias).double().requires_grad_(False)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 10, 3, 3, 7])
    expected = head(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(target_logprobs(hidden, head, targets), expected)
    assert torch.autograd.gradcheck(lambda h: target_logprobs(h, head, targets), hidden)


def test_a_vocabulary_that_learns_gets_its_gradient() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 11, bias=False).double()
    hidden = torch.randn(3, 4, dtype=torch.float64)
    targets = torch.tensor([1, 2, 3])
    target_logprobs(hidden, head, targets).sum().backward()
    soft = torch.nn.functional.one_hot(targets, 11) - head(hidden).softmax(-1)
    torch.testing.assert_close(head.weight.grad, (soft.T @ hidden).detach())


def test_bf16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(32, 64, bias=False).requires_grad_(False)
    hidden, targets = torch.randn(6, 32), torch.arange(6)
    exact = target_logprobs(hidden, head, targets)
    near = target_logprobs(hidden.bfloat16(), head.bfloat16(), targets)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, atol=0.05, rtol=0.02)
