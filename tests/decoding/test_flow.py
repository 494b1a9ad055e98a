"""Answers that enter as others leave are those of fixed groups: whatever the order, the budget and the company."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from personalign.contracts import UserError
from personalign.decoding.batch import Batch
from personalign.decoding.decoder import Decoder
from personalign.decoding.flow import Flow
from personalign.decoding.rows import Job, kind
from personalign.plans import Candidates, Chat, Deltas, Plan, Sampling, Soft, Stream
from personalign.policy.heads import HiddenHead
from personalign.policy.lora import LoRAConfig, parameters
from personalign.policy.policy import Policy
from personalign.policy.soft import SoftHead
from personalign.types import Message, Response

WIDE = 100_000
ALL = Candidates()


class Vectors(SoftHead):
    """Two soft tokens, by the length of a name."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.tokens, self.table = 2, nn.Parameter(table.clone())

    def forward(self, asked: Sequence[tuple[str, ...]]) -> Tensor:
        return torch.stack([self.table[[len(args[0]), 7 * len(args[0])]] for args in asked])


@pytest.fixture
def guided(tiny: Policy) -> Policy:
    """The tiny policy with strong random adapters of the upper layer (`one`, `two`) and of all (`deep`), a head on its
    hidden states, soft tokens, and many ends of text."""
    draw = torch.Generator().manual_seed(3)
    for name, layers in (("one", (1,)), ("two", (1,)), ("deep", None)):
        tiny.add_adapter(name, LoRAConfig(4, 8, 0.0, ("q_proj", "v_proj", "down_proj"), layers))
        for p in parameters(tiny.model, name):
            nn.init.normal_(p, std=0.15, generator=draw)
    tiny.heads["head"] = HiddenHead(tiny.embedding.embedding_dim)
    nn.init.normal_(tiny.heads["head"].bias, std=0.3, generator=draw)
    tiny.heads["soft"] = Vectors(tiny.embedding.weight.detach())
    tiny.stop_ids = tuple(range(2, 250, 31))
    return tiny


def said(text: str) -> Chat:
    return Chat((Message("user", text),))


def streams(number: int, text: str, count: int) -> tuple[Stream, ...]:
    """One to three streams: a base and guides, of which one reads the same prompt, below a head, behind soft tokens."""
    deltas: list[Deltas] = [(("one", 1.0),), (("two", 0.5), ("one", 1.0)), (("deep", 1.0),)]
    first = deltas[2] if number % 5 == 4 else deltas[number % 2]
    guide = Stream((said(text),), 1.3, first)
    other = Stream((Soft("soft", ("ab" * (number % 4 + 1),)), said(text[::2])), -0.4, deltas[1], "head")
    if count == 1:
        return ((Stream((said(text),)), guide, Stream(other.prompt))[number % 3],)
    return (Stream((said(text),)), guide, other)[:count]


def jobs(count: int, rule: Candidates = ALL, every: int = 1, **sampling: Any) -> list[Job]:
    """Ten of very unequal prompts and limits; a count of 0 is one, two and three streams in turn."""
    draw = random.Random(1)
    found = []
    for i in range(10):
        text = "".join(draw.choices("abcdefgh ", k=draw.choice((1, 9, 40, 70))))
        limited = Sampling(max_new_tokens=draw.choice((1, 3, 12, 25)), **sampling)
        found.append(Job(f"r{i}", Plan(streams(i, text, count or i % 3 + 1), rule, limited, every)))
    return found


def told(made: Sequence[Response]) -> dict[tuple[str, int], Any]:
    """All but log-probabilities and times, by request and sample."""
    assert len({(r.request, r.sample) for r in made}) == len(made)
    return {(r.request, r.sample): (r.tokens, r.text, r.stop, r.cost.forward_tokens) for r in made}


def logprobs(made: Sequence[Response]) -> list[float]:
    return [logprob for r in sorted(made, key=lambda r: (r.request, r.sample)) for logprob in r.logprobs]


def needs(policy: Policy, job: Job) -> int:
    """Tokens of cache that one job may need by itself, found by asking for one."""
    with pytest.raises(UserError) as error:
        Decoder(policy, 1, 1).generate([job])
    return int(str(error.value).split(" tokens of cache")[0].split()[-1])


def check(policy: Policy, some: Sequence[Job]) -> None:
    """Equal to every answer by itself: in budgets that hold one answer, a few, and all, and in another order."""
    alone = [response for job in some for response in Decoder(policy, 1).generate([job])]
    assert len({len(r.tokens) for r in alone}) > 3, "lengths differ"
    least = max(needs(policy, job) for job in some)
    shuffled = random.Random(2).sample(list(some), len(some))
    for budget, given in ((least, some), (2 * least, shuffled), (WIDE, some)):
        made = Decoder(policy, 1, budget).generate(given)
        assert told(made) == told(alone)
        assert logprobs(made) == pytest.approx(logprobs(alone), abs=1e-4)


GREEDY: dict[str, Any] = {}
DRAWN = {"temperature": 1.0, "top_p": 0.9}


@pytest.mark.parametrize(
    ("count", "sampling"), [(1, GREEDY), (1, DRAWN), (2, DRAWN), (3, GREEDY), (0, {**DRAWN, "n": 2}), (0, GREEDY)]
)
def test_answers_are_those_of_fixed_groups(guided: Policy, count: int, sampling: dict[str, Any]) -> None:
    check(guided, jobs(count, **sampling))


@pytest.mark.parametrize(
    ("rule", "every"),
    [(Candidates("top_k", 6), 1), (Candidates("top_k", 6), 3), (Candidates("plausible", fraction=0.2), 2)],
    ids=lambda value: getattr(value, "rule", value),
)
def test_candidates_and_intervals_too(guided: Policy, rule: Candidates, every: int) -> None:
    check(guided, jobs(3, rule, every))


def test_several_kinds_are_answered_one_after_the_other(guided: Policy) -> None:
    some = [
        Job(f"{job.request}{name}", job.plan)
        for name, alike in (("a", jobs(1)), ("b", jobs(2, Candidates("top_k", 4))), ("c", jobs(1, temperature=1.0)))
        for job in alike[:6]
    ]
    random.Random(0).shuffle(some)
    assert len({kind(job.plan) for job in some}) == 3
    check(guided, some)


def test_memory_stays_within_the_budget_and_rows_do_enter(guided: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    some = jobs(0, temperature=1.0, n=3)
    budget = 2 * max(needs(guided, job) for job in some)
    most: list[int] = []
    entered: list[int] = []
    step, take_in = Flow._step, Batch._take_in

    def size(batch: Batch) -> int:
        """Of the memory that there is, in tokens of its largest layer."""
        assert all(len({buffer.shape for buffer in layer.buffers}) == 1 for layer in batch.cache.layers)
        return max(layer.buffers[0].shape[0] * layer.buffers[0].shape[2] for layer in batch.cache.layers)

    def stepping(flow: Flow) -> Any:
        ended = step(flow)
        if flow.batch is not None:
            most.append(size(flow.batch))
        return ended

    def taking_in(batch: Batch, other: Batch) -> None:
        most.append(size(batch) + size(other))
        entered.append(len(other.alive))
        take_in(batch, other)

    monkeypatch.setattr(Flow, "_step", stepping)
    monkeypatch.setattr(Batch, "_take_in", taking_in)
    assert len(Decoder(guided, 1, budget).generate(some)) == 30
    assert budget / 2 < max(most) <= budget and len(entered) > 3


def test_who_is_nearly_done_and_who_has_just_come_share_columns(guided: Policy) -> None:
    """Side by side two answers need the columns of the longer one, however far each has come: nothing is wasted."""
    guided.stop_ids = ()
    limits = (40, 20, 39, 3, 35, 28)
    plans = [Plan((Stream((said("Hello"),)),), sampling=Sampling(max_new_tokens=n)) for n in limits]
    some = [Job(f"r{i}", plan) for i, plan in enumerate(plans)]
    forwards: list[int] = []
    handle = guided.model.get_decoder().register_forward_pre_hook(lambda *_: forwards.append(1))
    made = Decoder(guided, 1, 2 * needs(guided, some[0])).generate(some)
    handle.remove()
    assert [r.tokens for r in made] == [Decoder(guided, 1).generate([job])[0].tokens for job in some]
    # The first two are read together, then four by themselves; two are in flight until the last is alone.
    assert len(forwards) == 5 + (39 + 19 + 38 + 2 + 34 + 27 + 9) // 2


def test_where_one_fits_they_come_one_by_one(guided: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [Job(f"r{i}", Plan((Stream((said(f"{i}" * 20),)),), sampling=Sampling(max_new_tokens=9))) for i in range(4)]
    alive: list[int] = []
    start = Batch.start
    monkeypatch.setattr(Batch, "start", lambda batch: (alive.append(len(batch.alive)), start(batch))[1])
    Decoder(guided, 1, needs(guided, some[0])).generate(some)
    assert alive == [1, 1, 1, 1]


def test_what_never_fits_is_named_before_anything_begins(guided: Policy) -> None:
    fits, big = jobs(1)[0], Job("big", Plan((Stream((said("a" * 99),)), Stream((said("b"),)))))
    with pytest.raises(UserError, match=r"'big' may need \d+ tokens of cache, in 2 rows.*decoding.token_budget=200"):
        Decoder(guided, 1, 200).generate([fits, big])


def test_answers_are_handed_out_as_they_end_and_more_may_be_asked_meanwhile(guided: Policy) -> None:
    guided.stop_ids = ()
    plans = [Plan((Stream((said(f"{n}"),)),), sampling=Sampling(max_new_tokens=n)) for n in (30, 4, 17, 9)]
    decoder = Decoder(guided, 1, 400)
    queue = decoder.queue(decoder.groups([Job(f"r{i}", plan) for i, plan in enumerate([*plans, *plans])]))
    order, said_between = [], []
    for response in queue:
        order.append((response.request, len(response.tokens)))
        if response.request == "r1":
            queue.add(decoder.groups([Job("more", plans[1]), Job("equal", plans[0])]))
        assert guided.routing.slices == []
        with guided.using((("deep", 1.0),)):  # what its consumer does with the policy leaves the queue alone
            said_between.append(guided.hidden(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).sum().item())
    assert order[0] == ("r1", 4) and len(set(said_between)) == 1
    assert dict(order) == {
        **{f"r{i}": (30, 4, 17, 9)[i % 4] for i in range(8)},
        "more": 4,
        "equal": 30,
    }
    assert order.index(("more", 4)) < order.index(("r0", 30))


def test_answers_of_different_limits_share_a_fixed_group(tiny: Policy) -> None:
    tiny.stop_ids = ()
    some = [Job(f"r{n}", Plan((Stream((said("Hi"),)),), sampling=Sampling(max_new_tokens=n))) for n in (2, 9, 5)]
    (group,) = Decoder(tiny, 8).groups(some)
    whole = Decoder(tiny, 8).generate(group)
    assert [r.tokens for r in whole] == [whole[1].tokens[:n] for n in (2, 9, 5)]


def test_equal_greedy_plans_in_flight_are_one_answer(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = tiny.hidden
    monkeypatch.setattr(tiny, "hidden", lambda **kw: (rows.append(kw["input_ids"].shape[0]), forward(**kw))[1])
    plan = Plan((Stream((said("Hi"),)),), sampling=Sampling(max_new_tokens=5, n=2))
    made = Decoder(tiny, 8, WIDE).generate([Job(f"r{i}", plan) for i in range(3)])
    assert set(rows) == {1} and [(r.request, r.sample) for r in made] == [
        (f"r{i}", s) for i in range(3) for s in (0, 1)
    ]
