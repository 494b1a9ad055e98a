"""Beginnings that prompts share are read once, and the answers are those of prompts read whole."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from personalign.decoding import prefixes
from personalign.decoding.cache import RowLayer
from personalign.decoding.decoder import Decoder
from personalign.decoding.prefill import prefill
from personalign.decoding.prefixes import LEAST, cut
from personalign.decoding.rows import Answer, Job, Source, parts, prompt_ids
from personalign.plans import Candidates, Chat, Deltas, Plan, Sampling, Segment, Soft, Stream, Tokens
from personalign.policy.policy import Policy
from personalign.policy.trunk import Trunk
from personalign.types import Message, Response

KEPT = 100_000


def written(*ids: int) -> tuple[Segment, ...]:
    return (Tokens(ids),)


def told(user: int, text: str, history: int = 300) -> tuple[Segment, ...]:
    """A user's history as the system's turn, and what they ask."""
    draw = random.Random(user)
    past = "".join(draw.choices("abcdefgh ", k=history))
    return (Chat((Message("system", past), Message("user", text))),)


def ask(user: int, number: int, text: str, **sampling: Any) -> Job:
    """A base and guides, of which one reads another prompt behind soft tokens, one under a head and one is steered."""
    prompt = told(user, text)
    guides: list[tuple[Segment, ...]] = [prompt, (Soft("soft_tokens", ("x",)), *told(user + 50, text[::2], 200))]
    streams = (
        Stream(prompt),
        Stream(prompt, 0.7, (("warmth", 1.0),)),
        Stream(guides[1], -0.4, (("mine", 0.5),), "value"),
        Stream(prompt, 0.6, (("to_grade", 1.0),)),
    )[: number % 4 + 1]
    options = {"max_new_tokens": 12, **sampling}
    return Job(f"u{user}-{number}", Plan(streams, Candidates(), Sampling(**options)))


def asked(count: int = 12, users: int = 2, **sampling: Any) -> list[Job]:
    draw = random.Random(4)
    texts = ["".join(draw.choices("xyz ", k=draw.choice((2, 9, 40, 90)))) for _ in range(count)]
    return [ask(i % users, i, text, **sampling) for i, text in enumerate(texts)]


def figures(made: Sequence[Response]) -> dict[tuple[str, int], Any]:
    return {(r.request, r.sample): (r.tokens, r.text, r.stop, r.cost.forward_tokens) for r in made}


def logprobs(made: Sequence[Response]) -> list[float]:
    return [value for r in sorted(made, key=lambda r: (r.request, r.sample)) for value in r.logprobs]


def exactly(made: Sequence[Response]) -> dict[tuple[str, int], Any]:
    return {(r.request, r.sample): (r.tokens, r.logprobs) for r in made}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read before it was written is no number."""
    allocate = RowLayer.lazy_initialization

    def poison(layer: RowLayer, keys: torch.Tensor, values: torch.Tensor) -> None:
        allocate(layer, keys, values)
        for buffer in layer.buffers:
            buffer.fill_(float("nan"))

    monkeypatch.setattr(RowLayer, "lazy_initialization", poison)


@pytest.fixture
def fed(furnished: Policy) -> Iterator[list[int]]:
    """How many tokens every prefill forward of the crown feeds."""
    seen: list[int] = []
    top = furnished.model.get_decoder().layers[-1]
    handle = top.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[0] * args[0].shape[1]))
    yield seen
    handle.remove()


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_p": 0.9, "n": 2}], ids=["greedy", "drawn"])
@pytest.mark.parametrize(("size", "budget"), [(1, None), (5, None), (100, None), (1, 30_000)])
def test_answers_are_those_of_prompts_read_whole(
    furnished: Policy, sampling: dict[str, Any], size: int, budget: int | None
) -> None:
    jobs = asked(**sampling)
    whole = Decoder(furnished, 4).generate(jobs)
    made = Decoder(furnished, size, budget, KEPT).generate(jobs)
    assert figures(made) == figures(whole)
    assert logprobs(made) == pytest.approx(logprobs(whole), abs=1e-5)
    assert sum(r.cost.reused_tokens for r in made) > 10 * 300
    assert len({len(r.tokens) for r in made}) > 2


def test_what_is_kept_changes_no_bit(furnished: Policy) -> None:
    """Answers of a resumed run, of ranks, and of a decoder that keeps nothing are those of the whole, to the bit."""
    jobs = asked(temperature=1.0)
    decoder = Decoder(furnished, 3, None, KEPT)
    whole = exactly(list(decoder.queue(decoder.groups(jobs))))
    assert exactly(list(decoder.queue(decoder.groups(jobs)))) == whole, "all is kept"
    for resumed, tokens in itertools.product(
        (slice(1, None), slice(2, None, 2), slice(None, None, -1)), (0, 700, KEPT)
    ):
        other = Decoder(furnished, 3, None, tokens)
        some = exactly(list(other.queue(other.groups(jobs)[resumed])))
        assert some == {key: whole[key] for key in some} and some


def test_a_beginning_is_fed_once_for_a_run(furnished: Policy, fed: list[int]) -> None:
    texts = [told(0, "x" * (i + 1)) for i in range(6)]
    jobs = [Job(str(i), Plan((Stream(text),), sampling=Sampling(max_new_tokens=1))) for i, text in enumerate(texts)]
    Decoder(furnished, 2).generate(jobs)
    alone, fed[:] = sum(fed), []
    decoder = Decoder(furnished, 2, None, KEPT)
    made = decoder.generate(jobs)
    lengths = [len(prompt_ids(furnished, Stream(text))) for text in texts]
    ((shared,),) = {job.cuts for group in decoder.groups(jobs) for job in group}
    assert 300 < shared < min(lengths) and fed[0] == shared
    assert sum(fed) == shared + sum(2 * (longest - shared) for longest in lengths[1::2]) < alone / 4
    assert sum(r.cost.forward_tokens - r.cost.reused_tokens for r in made) == sum(fed)
    fed.clear()
    Decoder(furnished, 2, None, 0).generate(jobs)
    assert fed.count(shared) == 3, "where nothing is kept, each group reads it"


def test_cost_is_what_was_fed(furnished: Policy, fed: list[int]) -> None:
    """Where no forward has padding or idle rows: two streams of one prompt, samples of it, and equal greedy plans."""
    stops, furnished.stop_ids = furnished.stop_ids, ()
    try:
        for sampling in ({"temperature": 1.0, "n": 3}, {"n": 2}):
            fed.clear()
            jobs = [ask(0, number, "same", max_new_tokens=5, **sampling) for number in (1, 5)]
            alike = [Job(f"{number}{job.request}", job.plan) for job in jobs for number in range(2)]
            made = Decoder(furnished, 100, None, KEPT).generate(alike)
            assert sum(r.cost.forward_tokens - r.cost.reused_tokens for r in made) == sum(fed)
            assert all(0 <= r.cost.reused_tokens <= r.cost.forward_tokens for r in made)
    finally:
        furnished.stop_ids = stops


def test_other_weights_read_again(furnished: Policy) -> None:
    jobs = [ask(0, number, text) for number, text in ((3, "one"), (7, "another"))]
    decoder = Decoder(furnished, 1, None, KEPT)
    made = decoder.generate(jobs)

    def check() -> None:
        nonlocal made
        again = decoder.generate(jobs)
        assert exactly(again) == exactly(Decoder(furnished, 1, None, 0).generate(jobs)) != exactly(made)
        made = again

    base = furnished.model.get_decoder().layers[0].mlp.up_proj.weight
    lora = next(p for path, p in furnished.model.named_parameters() if path.endswith("deltas.warmth.B"))
    soft = furnished.heads["soft_tokens"].vectors
    for weights in (base, lora, furnished.vectors["to_grade"].vector, soft):
        before = weights.detach().clone()
        with torch.no_grad():
            weights.mul_(1.5)
        check()
        with torch.no_grad():
            weights.copy_(before)
        check()
    furnished.add_adapter("another", furnished.configs["dpo"])
    assert exactly(decoder.generate(jobs)) == exactly(made)
    furnished.drop_adapter("another")


def test_memory_is_bounded(furnished: Policy) -> None:
    jobs = [ask(user, 0, text) for user in range(5) for text in ("one", "another")]
    decoder = Decoder(furnished, 2, None, 900)
    decoder.generate([Job(f"r{i}", job.plan) for i, job in enumerate(jobs)])
    held = [cache.cells for _, cache in decoder.prefixes._kept.values()]
    assert len(held) == 2 and 600 < sum(held) <= 900


def fewest(texts: list[tuple[int, ...]], least: int) -> int:
    """The fewest tokens that feed these texts, over all choices of a beginning for each."""
    options = [[0, *range(least, len(text))] for text in texts]
    totals = []
    for chosen in itertools.product(*options):
        beginnings = {text[:n] for text, n in zip(texts, chosen, strict=True)}
        totals.append(sum(map(len, beginnings)) + sum(len(t) - n for t, n in zip(texts, chosen, strict=True)))
    return min(totals)


@pytest.mark.parametrize("seed", range(30))
def test_the_fewest_tokens_are_fed(furnished: Policy, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "LEAST", 2)
    draw = random.Random(seed)
    texts = [tuple(draw.choices((1, 2), k=draw.randint(1, 6))) for _ in range(5)]
    jobs = [Job(f"r{i}", Plan((Stream(written(*text)),))) for i, text in enumerate(texts)]
    cuts = [job.cuts[0] for job in cut(furnished, jobs)]
    distinct = dict(zip(texts, cuts, strict=True))
    assert cuts == [distinct[text] for text in texts], "equal prompts are cut alike"
    assert all(n == 0 or 2 <= n < len(text) for text, n in distinct.items())
    total = size({text[:n] for text, n in distinct.items()}) + sum(len(t) - n for t, n in distinct.items())
    assert total == fewest(list(distinct), 2)


def size(texts: set[tuple[int, ...]]) -> int:
    return sum(map(len, texts))


def test_prompts_are_cut_only_where_the_same_deltas_read_them(furnished: Policy) -> None:
    one: Deltas = (("dpo", 1.0),)
    two: Deltas = (("mine", 1.0),)
    ids = [(*range(1, 151), last, 1) for last in range(4)]
    plans = [
        Plan((Stream(written(*ids[0])), Stream(written(*ids[0]), 1.0, one))),
        Plan((Stream(written(*ids[1]), 1.0, one), Stream(written(*ids[1])))),
        Plan((Stream(written(*ids[2])), Stream(written(*ids[2]), 1.0, two))),
        Plan((Stream(written(*ids[3])),)),
    ]
    jobs = cut(furnished, [Job(f"r{i}", plan) for i, plan in enumerate(plans)])
    assert [job.cuts for job in jobs] == [(150, 150), (150, 150), (0, 0), (0,)]
    assert cut(furnished, jobs[:1])[0].cuts == (0, 0)


def test_short_prompts_stay_whole(furnished: Policy) -> None:
    jobs = [Job(f"r{i}", Plan((Stream(written(*range(1, 120), i)),))) for i in range(4)]
    assert {job.cuts for job in cut(furnished, jobs)} == {(0,)}


def test_parts_hold_whole_prompts_or_cut_ones() -> None:
    draw = random.Random(0)
    sources = [Source(tuple(range(200 + i)), (), (0, 150, 199)[i % 3]) for i in range(30)]
    draw.shuffle(sources)
    found = parts(sources, 500)
    assert sorted(source.ids for part in found for source in part) == sorted(source.ids for source in sources)
    assert all(len({source.cut > 0 for source in part}) == 1 for part in found)
    assert all(len(part) * max(source.fed for source in part) <= 500 for part in found)
    assert min(len(part) for part in found) == 2 and max(len(part) for part in found) > 5


def test_a_trunk_is_read_once_under_all_deltas(furnished: Policy) -> None:
    """Streams of one prompt with features in the upper layer alone: below it a beginning is one row."""
    rows: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    handles = [
        layer.register_forward_hook(lambda _, args, __, i=i: rows[i].append(tuple(args[0].shape[:2])))
        for i, layer in enumerate(furnished.model.get_decoder().layers)
    ]
    one = Sampling(max_new_tokens=1)
    prompts = [told(0, text) for text in ("one", "two")]
    plans = [Plan((Stream(p), Stream(p, 1.0, (("grade", 1.0),))), sampling=one) for p in prompts]
    try:
        Decoder(furnished, 4, None, KEPT).generate([Job(f"r{i}", plan) for i, plan in enumerate(plans)])
    finally:
        for handle in handles:
            handle.remove()
    assert [count for count, _ in rows[0]] == [1, 2] and [count for count, _ in rows[1]] == [2, 4]


def test_what_follows_may_be_of_any_length(furnished: Policy) -> None:
    """A forward feeds of each prompt as much as of the one with the longest end: of some, more than all."""
    texts = [tuple(range(3, 3 + LEAST + behind)) for behind in (1, 2)] + [(*range(3, 3 + LEAST), *range(2, 240))]
    jobs = [Job(f"r{i}", Plan((Stream(written(*ids)),))) for i, ids in enumerate(texts)]
    decoder = Decoder(furnished, 3, None, KEPT)
    assert {job.cuts for group in decoder.groups(jobs) for job in group} == {(LEAST,)}
    made, whole = decoder.generate(jobs), Decoder(furnished, 1).generate(jobs)
    assert figures(made) == figures(whole)
    assert logprobs(made) == pytest.approx(logprobs(whole), abs=1e-5)


def test_random_company(furnished: Policy) -> None:
    """Users with histories of any length, some alone, whole prompts that begin others', adapters of one's own."""
    draw = random.Random(7)
    jobs = []
    for i in range(24):
        user = draw.randint(0, 5)
        prompt = told(user, "x" * draw.choice((1, 5, 60)), 60 * user + 20)
        own: Deltas = (("mine", 1.0),) if user % 2 else ()
        streams = (Stream(prompt, 1.0, own), Stream(prompt, 0.5, (("formality", 1.0),)))[: draw.randint(1, 2)]
        jobs.append(
            Job(f"r{i}", Plan(streams, Candidates("top_k", 8), Sampling(max_new_tokens=draw.choice((1, 4, 9)))))
        )
    whole = Decoder(furnished, 1).generate(jobs)
    for size, budget, kept in ((1, None, 0), (7, None, 800), (24, None, KEPT), (1, 5000, 2000)):
        made = Decoder(furnished, size, budget, kept).generate(jobs)
        assert figures(made) == figures(whole)
        assert logprobs(made) == pytest.approx(logprobs(whole), abs=1e-5)


def test_states_are_those_of_a_prompt_read_whole(furnished: Policy) -> None:
    """The first token's scores, over the whole vocabulary, beside one forward of transformers."""
    jobs = [Job(f"r{i}", Plan((Stream(told(0, "x" * (9 * i + 1)), 1.0, (("mine", 1.0),)),))) for i in range(3)]
    decoder = Decoder(furnished, 3, None, KEPT)
    (group,) = decoder.groups(jobs)
    answers = [Answer(job, [(job, 0)]) for job in group]
    rows = [row for answer in answers for row in answer.begin(furnished)]
    with torch.inference_mode():
        cache, hidden = prefill(furnished, rows, Trunk(0), 1, decoder.prefixes)
        found = furnished.logits(hidden)
        assert cache.get_seq_length() == max(len(row.source.ids) for row in rows)
        furnished.routing.slices = []
        for row, scores in zip(rows, found, strict=True):
            assert row.source.cut > 300
            with furnished.using(row.source.deltas):
                expected = furnished.model(torch.tensor([row.source.ids])).logits[0, -1]
            assert (scores - expected).abs().max() < 1e-5
