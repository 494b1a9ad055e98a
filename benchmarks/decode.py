"""The decoder beside transformers' generate; steering and PAD beside one stream; PAD without cache; batching.

    personalign bench decode
    personalign bench decode -- --parts loop --repeats 3
    personalign bench decode -- --parts batching --groups 8

All figures are ratios. Answers are greedy. Beside generate they end where the model ends them, so that rows leave the
batch at different times; elsewhere all have the full length, because the released code of PAD does not stop at an end
of text either, or for continuous batching a length that is drawn for each.
The adapters add nothing (B = 0): every side answers the same up to rounding, and the time does not depend on it.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import _shared as bench  # before torch: it settles the threads
import torch

from personalign.alignment.trainees import Adapters
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.generation.context_steering import amulet_strength
from personalign.plans import Candidates, Chat, Plan, Sampling, Stream
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.types import Message

BETA = 0.8  # PAD's strength in its released settings
TOP = 10  # candidates, as in PAD
PREFERENCE = "I like answers that are warm, cheerful and friendly. Please answer that way."
TOPICS = ["photosynthesis", "the tides", "volcanoes", "chess", "rainbows", "vaccines", "glass", "bread"]
LANDS = ["France", "Spain", "Italy", "Greece", "Norway", "Poland", "Egypt", "Kenya"]
WAYS = [
    ("Explain {0} to a child.", "What is the capital of {1}?"),
    ("Write a story about {0}.", "Which language is spoken in {1}? Answer in one word."),
    ("Give five facts about {0}.", "On which continent is {1}?"),
    ("Write a poem about {0}.", "Name one river in {1}."),
]
MORE = ("", " Please be friendly.", " Please be brief.", " It is for a talk.")  # four times as many

Answers = list[list[int]]


def questions(n: int) -> list[Chat]:
    """Requests for long and for short answers in turn, all different; the first one is long."""
    asked = [
        one.format(topic, land) + more
        for more in MORE
        for long, short in WAYS
        for topic, land in zip(TOPICS, LANDS, strict=True)
        for one in (long, short)
    ]
    return [Chat((Message("user", one),)) for one in asked[:n]]


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


def ours(policy: Policy, made: list[Plan], size: int | None = None, budget: int | None = None) -> Answers:
    """The decoder, prefill included: all plans as one group, in groups of `size`, or within a budget."""
    jobs = [Job(str(i), plan) for i, plan in enumerate(made)]
    return [list(found.tokens) for found in Decoder(policy, size or len(jobs), budget).generate(jobs)]


def unequal(chats: list[Chat], lengths: tuple[int, int]) -> list[Plan]:
    """One stream each, and limits between two lengths: as many from 16 to 32 as from 128 to 256."""
    draw, (low, high) = random.Random(0), map(math.log, lengths)
    limits = [*lengths, *(round(math.exp(draw.uniform(low, high))) for _ in chats[2:])]
    draw.shuffle(limits)
    return [plans([chat], 0, limit)[0] for chat, limit in zip(chats, limits, strict=True)]


def theirs(model: Any, policy: Policy, chats: list[Chat], new: int) -> Answers:
    """transformers' greedy generate on the same prompts, left-padded, with its default cache."""
    ids = [policy.encode(chat.messages) for chat in chats]
    width = max(map(len, ids))
    batch = torch.tensor([[policy.pad_id] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    stops = list(policy.stop_ids)
    options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": policy.pad_id, "eos_token_id": stops}
    rows = model.generate(batch, attention_mask=mask, **options)[:, width:].tolist()
    ends = [next((i + 1 for i, token in enumerate(row) if token in stops), new) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


@torch.inference_mode()
def recomputed(base: Any, guide: Any, prompt: list[int], new: int) -> list[int]:
    """PAD's generate_step as released: one prompt, every token reads the whole prefix again in both models."""
    ids = list(prompt)
    for _ in range(new):
        prefix = torch.tensor([ids])
        best, top = base(prefix, use_cache=False).logits[0, -1].topk(TOP)
        guided = guide(prefix, use_cache=False).logits[0, -1][top]
        reward = guided.float().log_softmax(-1) - best.float().log_softmax(-1)
        ids.append(int(top[(best.float() + BETA * reward).argmax()]))
    return ids[len(prompt) :]


def looped(base: Any, guide: Any, prompts: list[list[int]], new: int) -> Answers:
    return [recomputed(base, guide, prompt, new) for prompt in prompts]


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


def compare(title: str, first: Callable[[], Answers], second: Callable[[], Answers], repeats: int) -> None:
    """Print the median rates of both, the median ratio, and how long the answers of each were."""
    lengths: dict[str, list[int]] = {}

    def side(key: str, work: Callable[[], Answers]) -> float:
        lengths[key] = [len(answer) for answer in work()]
        return sum(lengths[key])

    sides = {key: partial(bench.rate, partial(side, key, work)) for key, work in (("a", first), ("b", second))}
    found = bench.in_turn(sides, repeats)
    a, b = (statistics.median(found[key]) for key in "ab")
    told = " and ".join(f"{min(n)}/{statistics.median(n):g}/{max(n)}" for n in lengths.values())
    print(
        f"{title:52s} {a:8.2f} {b:8.2f} tokens/s   ratio {bench.ratio(found['a'], found['b']):6.2f}   {told}",
        flush=True,
    )


def generate_part(asked: Namespace, bare: Policy) -> None:
    model = bench.plain(asked)
    for size in asked.batches:
        chats = questions(size)
        first = partial(ours, bare, plans(chats, 0, asked.new))
        second = partial(theirs, model, bare, chats, asked.new)
        compare(f"one stream, generate; batch {size}", first, second, asked.repeats)


def pad_part(asked: Namespace, bare: Policy, guided: Policy) -> None:
    for size in asked.batches:
        chats = questions(size)
        second = partial(ours, bare, plans(chats, 0, asked.new))
        for scale, features in itertools.product(asked.scales, asked.features):
            first = partial(ours, guided, plans(chats, features, asked.new, scale))
            with endless(bare, guided):
                compare(f"PAD K={features} scale={scale}, one stream; batch {size}", first, second, asked.repeats)


def steered(chats: list[Chat], new: int, strength: float, echo: float = 0.0) -> list[Plan]:
    """Two streams of the base: the request with a preference and without (CoS, Amulet; with an echo OPAD)."""
    found = []
    for chat in chats:
        told = Chat((Message("user", f"{chat.messages[-1].content}\n\n{PREFERENCE}"),))
        streams = (Stream((told,), 1.0 + strength), Stream((chat,), -strength))
        found.append(Plan(streams, sampling=Sampling(max_new_tokens=new), echo=echo))
    return found


def streams_part(asked: Namespace, bare: Policy) -> None:
    """The one stream reads the preference too, so that what is measured is the second stream alone."""
    sides = {"CoS": (1.0, 0.0), "Amulet": (amulet_strength(60, 2.0, 2.0, 10.0), 0.0), "OPAD": (0.5, 1.0)}
    for size, (title, (strength, echo)) in itertools.product(asked.batches, sides.items()):
        chats = questions(size)
        both = steered(chats, asked.new, strength, echo)
        first = partial(ours, bare, both)
        second = partial(ours, bare, [Plan(plan.streams[:1], sampling=plan.sampling) for plan in both])
        with endless(bare):
            compare(f"{title}, one stream; batch {size}", first, second, asked.repeats)


def loop_part(asked: Namespace, guided: Policy) -> None:
    """The loop's first tokens are its cheapest, so what is measured on few of them is in its favour."""
    print(f"The loop makes {asked.loop_new} tokens behind {asked.prompt} of a prompt, one prompt after the other.")
    models = bench.plain(asked), bench.plain(asked)  # two, as the released code has
    for size in asked.loop_batches:
        chats = documents(guided, size, asked.prompt)
        second = partial(looped, *models, [guided.encode(chat.messages) for chat in chats], asked.loop_new)
        for new in dict.fromkeys((asked.new, asked.loop_new)):
            first = partial(ours, guided, plans(chats, 1, new))
            with endless(guided):
                compare(f"PAD K=1 of {new} tokens, no cache; batch {size}", first, second, asked.repeats)


def batching_part(asked: Namespace, bare: Policy) -> None:
    """Both sides within the same memory: a fixed group's, at the longest prompt and answer."""
    chats = questions(asked.answers)
    made = unequal(chats, tuple(asked.lengths))
    widest = max(len(bare.encode(chat.messages)) for chat in chats) + max(asked.lengths)
    for size in asked.groups:
        first, second = partial(ours, bare, made, budget=size * widest), partial(ours, bare, made, size)
        with endless(bare):
            compare(f"continuous, fixed groups of {size}; {len(made)} answers", first, second, asked.repeats)


def options() -> Namespace:
    made = bench.parser(__doc__ or "")
    parts = ["generate", "streams", "pad", "loop", "batching"]
    made.add_argument("--parts", nargs="+", choices=parts, default=parts)
    made.add_argument("--new", type=int, default=128, help="tokens of an answer at most")
    made.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="256 at most")
    made.add_argument("--features", type=int, nargs="+", default=[1, 3, 6])
    made.add_argument("--scales", nargs="+", default=["cpu", "full"], help="whose adapters: files of conf/scale")
    made.add_argument("--prompt", type=int, default=500, help="tokens of a prompt beside the loop")
    made.add_argument("--loop-new", type=int, default=8, help="tokens that the loop without a cache makes")
    made.add_argument("--loop-batches", type=int, nargs="+", default=[1, 8])
    made.add_argument("--groups", type=int, nargs="+", default=[8, 32], help="sizes beside continuous batching")
    made.add_argument("--answers", type=int, default=64, help="of unequal length there; 256 at most")
    made.add_argument("--lengths", type=int, nargs=2, default=[16, 256], help="the shortest and the longest of them")
    return made.parse_args()


def main() -> None:
    asked = options()
    bare, guided = bench.build(asked), bench.build(asked)
    for scale in {"full", *asked.scales}:
        adapt(guided, max(asked.features), scale)
    print(bench.machine(asked))
    print("Behind each ratio: the shortest/median/longest answer of both sides, in tokens.")
    if "generate" in asked.parts:
        generate_part(asked, bare)
    if "streams" in asked.parts:
        streams_part(asked, bare)
    if "pad" in asked.parts:
        pad_part(asked, bare, guided)
    if "loop" in asked.parts:
        loop_part(asked, guided)
    if "batching" in asked.parts:
        batching_part(asked, bare)


if __name__ == "__main__":
    main()
