"""The decoder against transformers' generate, against itself in other batch sizes, and against brute force."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
import reference as brute
import torch

from personalign.contracts import UserError
from personalign.decoding import prefill
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job, Source, parts
from personalign.plans import Candidates, Chat, Deltas, Plan, Sampling, Stream
from personalign.policy.lora import LoRAConfig, parameters
from personalign.policy.policy import Policy
from personalign.types import Message

TEXTS = [
    "Hi",
    "Tell me about the sea.",
    "Why?",
    "A much longer prompt, so that padding matters a lot here.",
    "x",
    "Go on",
    "Seven",
]


def chat(text: str) -> tuple[Chat]:
    return (Chat((Message("user", text),)),)


def plain(text: str, deltas: Deltas = (), **sampling: object) -> Plan:
    options = {"max_new_tokens": 24, **sampling}
    return Plan((Stream(chat(text), 1.0, deltas),), sampling=Sampling(**options))  # type: ignore[arg-type]


def decode(policy: Policy, plans: list[Plan], batch_size: int = 8) -> list[tuple[int, ...]]:
    jobs = [Job(f"r{i}", plan) for i, plan in enumerate(plans)]
    order = {r.request: r.tokens for r in Decoder(policy, batch_size).generate(jobs)}
    return [order[job.request] for job in jobs]


@pytest.fixture(params=[None, (1,)], ids=["all_layers", "upper_layer"])
def guided(tiny: Policy, request: pytest.FixtureRequest) -> Policy:
    """The tiny policy with two strong random adapters, on some linear layers each: of all layers, or of the upper one.

    In the second case rows that read the same tokens are one row below.
    """
    generator = torch.Generator().manual_seed(3)
    for name, targets in (("one", ("q_proj", "v_proj", "down_proj")), ("two", ("k_proj", "gate_proj"))):
        tiny.add_adapter(name, LoRAConfig(4, 8, 0.0, targets, request.param))
        for p in parameters(tiny.model, name):
            torch.nn.init.normal_(p, std=0.15, generator=generator)
    return tiny


@pytest.fixture
def stopping(tiny: Policy) -> Policy:
    """The tiny policy with many end-of-text ids, so that answers end at very different lengths."""
    tiny.stop_ids = tuple(range(2, 60, 5))
    return tiny


def reference(policy: Policy, text: str) -> tuple[int, ...]:
    ids = torch.tensor([policy.encode((Message("user", text),))])
    found = policy.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=list(policy.stop_ids),
        pad_token_id=policy.pad_id,
    )
    return tuple(found[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_greedy_equals_transformers_generate(stopping: Policy, batch_size: int) -> None:
    ours = decode(stopping, [plain(t) for t in TEXTS], batch_size)
    assert ours == [reference(stopping, t) for t in TEXTS]
    assert len({len(tokens) for tokens in ours}) >= 3, "rows must leave the batch at different times"


@pytest.mark.parametrize("tokens", [1, 60, 100_000])
def test_a_prefill_in_parts_of_any_size_gives_the_same(
    guided: Policy, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas: list[Deltas] = [(), (("one", 1.0),), (("two", -0.5), ("one", 2.0))]
    plans = [
        Plan(
            (Stream(chat(text)), Stream(chat(text + "!"), 0.7, deltas[i % 3]), Stream(chat(text), 0.3, deltas[2])),
            sampling=Sampling(max_new_tokens=8),
        )
        for i, text in enumerate(TEXTS)
    ]
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", tokens)
    twin = brute.exact(guided)
    assert decode(guided, plans) == [brute.decode(twin, plan) for plan in plans]


def test_parts_of_a_prefill_are_of_like_length_and_hold_every_source_once() -> None:
    draw = random.Random(0)
    sources = [Source(tuple(range(draw.randint(1, 60))), ((("a", 1.0),), ())[i % 2]) for i in range(40)]
    found = parts(sources, 100)
    assert Counter(source for part in found for source in part) == Counter(sources)
    texts = [{source.ids for source in part} for part in found]
    assert sum(map(len, texts)) == len(set().union(*texts)), "sources with the same ids are in one part"
    assert all(len(part) * max(map(len, ids)) <= 100 or len(ids) == 1 for part, ids in zip(found, texts, strict=True))
    ends = [(min(len(s.ids) for s in part), max(len(s.ids) for s in part)) for part in found]
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(ends)) and len(found) > 5
    assert all([bool(s.deltas) for s in part] == sorted(bool(s.deltas) for s in part) for part in found)


RULES = [
    Candidates(),
    Candidates("top_k", 10),
    Candidates("plausible", fraction=0.2),
    Candidates("top_k", 5, stream=1),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.rule}{r.stream}")
@pytest.mark.parametrize("every", [1, 3])
def test_plans_of_several_streams_equal_an_uncached_loop(guided: Policy, rule: Candidates, every: int) -> None:
    guided.stop_ids = tuple(range(2, 60, 5))
    one, two = (("one", 1.0),), (("one", 0.5), ("two", 1.5))
    plans = [
        Plan(
            (Stream(chat(t)), Stream(chat(t + "!"), 1.7, one), Stream(chat(t), -0.7, two)),
            rule,
            Sampling(max_new_tokens=16),
            every,
        )
        for t in TEXTS
    ]
    twin = brute.exact(guided)
    assert decode(guided, plans, batch_size=4) == [brute.decode(twin, plan) for plan in plans]


def test_batch_of_n_equals_n_batches_of_one(guided: Policy) -> None:
    guided.stop_ids = tuple(range(2, 60, 5))
    plans = [plain(t, (("one", 1.0),) if i % 2 else (), temperature=1.0, n=2) for i, t in enumerate(TEXTS)]
    jobs = [Job(f"r{i}", p) for i, p in enumerate(plans)]
    together = Decoder(guided, 64).generate(jobs)
    alone = [r for job in jobs for r in Decoder(guided, 1).generate([job])]
    assert [(r.request, r.sample, r.tokens) for r in together] == [(r.request, r.sample, r.tokens) for r in alone]
    assert len({r.tokens for r in together}) > len(plans), "samples of one request should differ"


def test_samples_that_are_made_later_are_those_that_would_have_been_made(tiny: Policy) -> None:
    three = Decoder(tiny, 4).generate([Job("r", plain("Hi", temperature=1.0, n=3))])
    later = Decoder(tiny, 4).generate([Job("r", plain("Hi", temperature=1.0, n=2), first=1)])
    assert [(r.sample, r.tokens) for r in later] == [(r.sample, r.tokens) for r in three[1:]]
    assert [r.sample for r in three] == [0, 1, 2] and len({r.tokens for r in three}) == 3


def test_logprobs_are_those_of_the_combined_policy(guided: Policy) -> None:
    response = Decoder(guided, 4).generate([Job("r", plain("Hi", (("one", 1.0),)))])[0]
    prompt = guided.encode((Message("user", "Hi"),))
    ids = torch.tensor([prompt + list(response.tokens)])
    with guided.using((("one", 1.0),)), torch.no_grad():
        logp = guided.model(ids).logits[0].log_softmax(-1)
    expected = [logp[len(prompt) - 1 + i, t].item() for i, t in enumerate(response.tokens)]
    assert response.logprobs == pytest.approx(expected, abs=1e-4)


def test_equal_greedy_plans_are_decoded_once_and_given_to_each(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = tiny.hidden
    monkeypatch.setattr(tiny, "hidden", lambda **kw: (rows.append(kw["input_ids"].shape[0]), forward(**kw))[1])
    responses = Decoder(tiny, 8).generate([Job(f"r{i}", plain("Hi")) for i in range(5)])
    assert set(rows) == {1}
    assert len({r.tokens for r in responses}) == 1 and [r.request for r in responses] == [f"r{i}" for i in range(5)]


@pytest.mark.parametrize("upper", [(0, 1), (1,)])
def test_rows_that_read_the_same_are_one_row_below_their_adapters(tiny: Policy, upper: tuple[int, ...]) -> None:
    for name in ("one", "two"):
        tiny.add_adapter(name, LoRAConfig(4, 8, 0.0, ("q_proj",), upper))
    seen: dict[int, list[int]] = {0: [], 1: []}
    for i, layer in enumerate(tiny.model.get_decoder().layers):
        layer.register_forward_hook(lambda _, __, states, i=i: seen[i].append(len(states)))
    guides = [Stream(chat("Hi"), 0.5, ((name, 1.0),)) for name in ("one", "two")]
    plan = Plan((Stream(chat("Hi")), Stream(chat("Hi there"), -1.0), *guides), sampling=Sampling(max_new_tokens=3))
    decode(tiny, [plan])
    assert set(seen[1]) == {4} and set(seen[0]) == ({4} if upper == (0, 1) else {2})


def test_cost_counts_every_stream(guided: Policy) -> None:
    plan = Plan((Stream(chat("Hi")), Stream(chat("Hi"), 0.5, (("one", 1.0),))), sampling=Sampling(max_new_tokens=5))
    guided.stop_ids = ()
    response = Decoder(guided, 1).generate([Job("r", plan)])[0]
    prompt = len(guided.encode((Message("user", "Hi"),)))
    assert response.cost.forward_tokens == 2 * (prompt + 4) and response.cost.new_tokens == 5


def test_a_prompt_longer_than_the_context_is_named(tiny: Policy) -> None:
    with pytest.raises(UserError, match=r"request .r0. has a prompt of .* context of 512 tokens"):
        decode(tiny, [plain("a" * 600)])
    assert tiny.routing.slices == []


def test_top_p_keeps_the_smallest_nucleus() -> None:
    from personalign.decoding.sampling import warp

    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = warp(scores, Sampling(temperature=1.0, top_p=0.7)).isfinite()
    assert kept.tolist() == [[True, True, False, False]]


def test_sampling_follows_the_distribution() -> None:
    from personalign.decoding.sampling import choose

    probabilities = torch.tensor([0.6, 0.25, 0.1, 0.05])
    generators = [torch.Generator().manual_seed(i) for i in range(20000)]
    index = choose(probabilities.log().repeat(20000, 1), Sampling(temperature=1.0), generators)
    shares = torch.bincount(index, minlength=4) / 20000
    assert torch.allclose(shares, probabilities, atol=0.015)
