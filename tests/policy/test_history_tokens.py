"""The encoder of histories against its formulas in float64, text by text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from personalign.contracts import UserError
from personalign.plans import Args
from personalign.policy.heads import load_head, save_head
from personalign.policy.history_tokens import Form, HistoryTokens
from personalign.types import Vector

FORMS: tuple[Form, ...] = ("attention", "mean")


def made(form: Form, tokens: int = 2, instruction: int = 3) -> HistoryTokens:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        head = HistoryTokens(form, 4, 6, tokens, torch.randn(instruction, 8), 0.7)
        if head.query is not None:
            nn.init.normal_(head.query)
    return head


def unit(seed: int) -> Vector:
    vector = torch.randn(4, generator=torch.Generator().manual_seed(seed))
    return tuple((vector / vector.norm()).tolist())


ASKED: list[Args] = [(unit(0), unit(1), unit(2), unit(3)), (unit(4), unit(5)), (unit(4), unit(5), unit(1))]


def by_hand(head: HistoryTokens, args: Args) -> Tensor:
    """[tokens, width], with loops."""
    weights = {name: p.detach().double() for name, p in head.state_dict().items()}
    q, *texts = (torch.tensor(one, dtype=torch.float64) for one in args)

    def f(vector: Tensor) -> Tensor:
        inner = weights["network.0.weight"] @ (vector * 2.0) + weights["network.0.bias"]  # 2 is the root of 4
        inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
        return ((weights["network.2.weight"] @ inner + weights["network.2.bias"]) * 0.7).view(head.own, 8)

    if head.form == "mean":
        mean = sum(texts, torch.zeros(4).double()) / len(texts)
        own = f(mean / mean.norm())
    else:
        powers = [float(torch.exp(h @ (weights["query"] @ q))) for h in texts]
        own = sum((p / sum(powers) * f(h) for p, h in zip(powers, texts, strict=True)), torch.zeros(1).double())
    return torch.cat([weights["instruction"], own])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("instruction", [0, 3])
def test_tokens_are_the_formulas(form: Form, instruction: int) -> None:
    head = made(form, instruction=instruction)
    found = head(ASKED).detach()
    assert head.tokens == instruction + 2 and found.shape == (3, head.tokens, 8)
    for row, args in zip(found, ASKED, strict=True):
        torch.testing.assert_close(row.double(), by_hand(head, args), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(head([args])[0].detach(), row, atol=1e-6, rtol=1e-5)


def test_at_first_attention_is_that_of_the_vectors_themselves() -> None:
    head = HistoryTokens("attention", 4, 6, 1, torch.zeros(0, 8), 1.0)
    assert head.query is not None and torch.equal(head.query.detach(), torch.eye(4))


def test_attention_depends_on_what_is_asked_and_a_mean_does_not() -> None:
    other: Args = (unit(9), *ASKED[0][1:])
    for form in FORMS:
        head = made(form)
        one, two = head([ASKED[0], other]).detach()
        assert torch.equal(one[:3], two[:3])
        assert torch.allclose(one, two, atol=1e-5) == (form == "mean")


def test_a_request_without_text_reads_all_texts_alike() -> None:
    head = made("attention")
    asked: Args = ((0.0,) * 4, *ASKED[0][1:])
    alone = [head([(unit(0), text)])[0, 3:] for text in ASKED[0][1:]]
    torch.testing.assert_close(head([asked])[0, 3:], torch.stack(alone).mean(0))


@pytest.mark.parametrize("form", FORMS)
def test_everything_learns(form: Form) -> None:
    head = made(form)
    head(ASKED).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head.parameters())


def test_a_file_says_its_form(tmp_path: Path) -> None:
    path, head = tmp_path / "history.safetensors", made("attention")
    save_head(head, path)
    again = HistoryTokens("attention", 4, 6, 2, torch.zeros(3, 8), 0.1)
    load_head(again, path)
    assert torch.equal(head(ASKED), again(ASKED))
    with pytest.raises(UserError, match=r"history\.safetensors cannot be read"):
        load_head(made("mean"), path)
