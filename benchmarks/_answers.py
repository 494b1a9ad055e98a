"""What the benchmarks of decoding share: prompts, plans, the decoder's answers, and their rates beside others'."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import _shared as bench  # before torch: it settles the threads

from personalign.alignment.trainees import Adapters
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.plans import Candidates, Chat, Plan, Sampling, Stream
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.types import Message

BETA = 0.8  # PAD's strength in its released settings
TOP = 10  # candidates, as in PAD
PREFERENCE = "I like answers that are warm, cheerful and friendly. Please answer that way."

Answers = list[list[int]]


def documents(policy: Policy, n: int, tokens: int) -> list[Chat]:
    """Prompts of `tokens` tokens, template included."""
    frame = len(policy.encode((Message("user", ""),)))
    draw = random.Random(0)
    return [Chat((Message("user", bench.text(policy, draw, tokens - frame)),)) for _ in range(n)]


def name(feature: int, scale: str) -> str:
    return f"{scale}-{feature}"


def adapt(policy: Policy, features: int, scale: str) -> None:
    """So many features as adapters of the rank and in the places in which alignment=pad trains them at this scale."""
    recipe = {**bench.shipped("alignment", "pad"), **bench.trained(scale, "pad")}
    config = LoRAConfig(recipe["rank"], recipe["alpha"], 0.0, tuple(recipe["targets"]))
    adapters = Adapters(tuple(name(k, scale) for k in range(features)), config, recipe["depth"])
    adapters.create(policy, seed=0)
    adapters.freeze(policy)


def plans(chats: list[Chat], features: int, new: int, scale: str = "full") -> list[Plan]:
    """PAD with so many features, each a LoRA adapter on the same base; 0 is the base alone."""
    sampling = Sampling(max_new_tokens=new)
    if not features:
        return [Plan((Stream((chat,)),), sampling=sampling) for chat in chats]
    guides = [((name(k, scale), 1.0),) for k in range(features)]
    return [
        Plan(
            (Stream((chat,), 1.0 - BETA), *[Stream((chat,), BETA / features, deltas) for deltas in guides]),
            Candidates("top_k", TOP),
            sampling,
        )
        for chat in chats
    ]


def steered(chats: list[Chat], new: int, strength: float, echo: float = 0.0) -> list[Plan]:
    """Two streams of the base: the request with a preference and without (CoS, Amulet; with an echo OPAD)."""
    found = []
    for chat in chats:
        told = Chat((Message("user", f"{chat.messages[-1].content}\n\n{PREFERENCE}"),))
        streams = (Stream((told,), 1.0 + strength), Stream((chat,), -strength))
        found.append(Plan(streams, sampling=Sampling(max_new_tokens=new), echo=echo))
    return found


def ours(policy: Policy, made: list[Plan], size: int | None = None, budget: int | None = None) -> Answers:
    """The decoder, prefill included: all plans as one group, in groups of `size`, or within a budget."""
    jobs = [Job(str(i), plan) for i, plan in enumerate(made)]
    return [list(found.tokens) for found in Decoder(policy, size or len(jobs), budget).generate(jobs)]


@contextmanager
def endless(*policies: Policy) -> Iterator[None]:
    """No token ends an answer."""
    before = [policy.stop_ids for policy in policies]
    for policy in policies:
        policy.stop_ids = ()
    try:
        yield
    finally:
        for policy, stops in zip(policies, before, strict=True):
            policy.stop_ids = stops


@dataclass(frozen=True, slots=True)
class Measured:
    """The rates of every side, tokens a second, and what it answered."""

    rates: dict[str, list[float]]
    answers: dict[str, Answers]

    def tell(self, title: str, first: str, second: str, note: str = "") -> None:
        """Print the median rates of two sides, the median ratio, and how long the answers of each were."""
        a, b = self.rates[first], self.rates[second]
        lengths = [[len(answer) for answer in self.answers[side]] for side in (first, second)]
        told = " and ".join(f"{min(n)}/{statistics.median(n):g}/{max(n)}" for n in lengths)
        print(
            f"{title:52s} {statistics.median(a):8.2f} {statistics.median(b):8.2f} tokens/s   "
            f"ratio {bench.ratio(a, b):6.2f}   {told}{note}",
            flush=True,
        )

    def alike(self, first: str, second: str) -> str:
        """How many tokens both sides gave, and how many of them are the same."""
        both = zip(self.answers[first], self.answers[second], strict=False)
        same = [x == y for one, other in both for x, y in zip(one, other, strict=False)]
        return f"{sum(same)} of {len(same)} tokens alike"


def measure(sides: Mapping[str, Callable[[], Answers]], repeats: int) -> Measured:
    answers: dict[str, Answers] = {}

    def side(key: str) -> float:
        answers[key] = sides[key]()
        return sum(map(len, answers[key]))

    rates = bench.in_turn({key: partial(bench.rate, partial(side, key)) for key in sides}, repeats)
    return Measured(rates, answers)


def compare(title: str, first: Callable[[], Answers], second: Callable[[], Answers], repeats: int) -> None:
    measure({"a": first, "b": second}, repeats).tell(title, "a", "b")
