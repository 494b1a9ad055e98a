"""Attention by matrix products against torch's own kernel, and the conditions under which it is taken."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from personalign.policy import attention
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.policy import Policy


def inputs(time: int = 7, keys: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shapes = (2, 4, time, 8), (2, 2, keys, 8), (2, 2, keys, 8)
    query, key, value = (torch.randn(*shape, requires_grad=True) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize("kind", ["causal", "boolean", "additive"])
def test_equal_to_the_fused_kernel_in_value_and_gradient(kind: str) -> None:
    query, key, value = inputs()
    allowed = (torch.rand(2, 1, 7, 7) > 0.4).logical_or(torch.eye(7, dtype=torch.bool))
    additive = torch.zeros(2, 1, 7, 7).masked_fill(~allowed, float("-inf"))
    mask = {"causal": None, "boolean": allowed, "additive": additive}[kind]
    wide = [t.repeat_interleave(2, dim=1) for t in (key, value)]
    expected = F.scaled_dot_product_attention(query, *wide, attn_mask=mask, is_causal=mask is None, scale=0.3)
    found = attention.products(query, key, value, mask, 0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)
    weight = torch.randn(2, 7, 4, 8)
    ours = torch.autograd.grad((found * weight).sum(), (query, key, value), retain_graph=True)
    theirs = torch.autograd.grad((expected.transpose(1, 2) * weight).sum(), (query, key, value))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mask", [None, "additive"])
@pytest.mark.parametrize("time", [1, 3])
def test_tokens_behind_a_cache_attend_as_by_the_fused_kernel(
    time: int, mask: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = inputs(time, 9)
    hidden = torch.zeros(2, 1, time, 9).masked_fill(torch.rand(2, 1, time, 9) > 0.6, float("-inf")) if mask else None
    if hidden is not None:
        hidden[..., -1] = 0.0
    elif time > 1:
        hidden = torch.zeros(2, 1, time, 9)
    wide = [t.repeat_interleave(2, dim=1) for t in (key, value)]
    expected = F.scaled_dot_product_attention(query, *wide, attn_mask=hidden, scale=0.3)
    module = torch.nn.Module()
    module.is_causal = True  # type: ignore[assignment]
    module.num_key_value_groups = 2  # type: ignore[assignment]
    taken: list[str] = []
    for name in ("packed", "products"):
        ours = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *args, name=name, ours=ours: taken.append(name) or ours(*args))
    found, _ = attention.attend(module, query, key, value, hidden, scaling=0.3)
    assert taken == ([] if time == 1 and mask else ["packed" if time == 1 else "products"])
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_a_policy_attends_by_products_in_short_rows_alone(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    products = attention.products
    monkeypatch.setattr(attention, "products", lambda *args: taken.append(args[0].shape[2]) or products(*args))
    short = Branches((5, 6, 7), ((8, 9), (10,)))
    before = answer_logprobs(tiny, [short])
    assert taken == [6, 6]
    monkeypatch.setattr(attention, "LARGEST", 25)
    for one, other in zip(answer_logprobs(tiny, [short]), before, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert taken == [6, 6]


@pytest.mark.parametrize("option", [{"dropout": 0.1}, {"softcap": 3.0}, {"position_bias": 1}, {"s_aux": 1}])
def test_anything_beyond_plain_attention_is_left_to_transformers(option: dict[str, object]) -> None:
    module = torch.nn.Module()
    module.is_causal = True  # type: ignore[assignment]
    assert attention._plain(module, None, {"scaling": 0.3})
    assert not attention._plain(module, None, {"scaling": 0.3, **option})
    assert not attention._plain(torch.nn.Module(), None, {"scaling": 0.3})
