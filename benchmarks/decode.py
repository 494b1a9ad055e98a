"""The decoder beside transformers' generate; steering and PAD beside one stream; continuous batching.

    personalign bench decode
    personalign bench decode -- --parts pad --repeats 3
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
from argparse import Namespace
from functools import partial
from typing import Any

import _shared as bench  # before torch: it settles the threads
import torch
from _answers import Answers, adapt, compare, endless, ours, plans, steered

from personalign.generation.context_steering import amulet_strength
from personalign.plans import Chat, Plan
from personalign.policy.policy import Policy
from personalign.types import Message

TOPICS = ["photosynthesis", "the tides", "volcanoes", "chess", "rainbows", "vaccines", "glass", "bread"]
LANDS = ["France", "Spain", "Italy", "Greece", "Norway", "Poland", "Egypt", "Kenya"]
WAYS = [
    ("Explain {0} to a child.", "What is the capital of {1}?"),
    ("Write a story about {0}.", "Which language is spoken in {1}? Answer in one word."),
    ("Give five facts about {0}.", "On which continent is {1}?"),
    ("Write a poem about {0}.", "Name one river in {1}."),
]
MORE = ("", " Please be friendly.", " Please be brief.", " It is for a talk.")  # four times as many


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


def batching_part(asked: Namespace, bare: Policy) -> None:
    """Both sides within the same memory: a fixed group's, at the longest prompt and answer."""
    for size in asked.groups:
        chats = questions(size * asked.turns)
        made = unequal(chats, tuple(asked.lengths))
        widest = max(len(bare.encode(chat.messages)) for chat in chats) + max(asked.lengths)
        first, second = partial(ours, bare, made, budget=size * widest), partial(ours, bare, made, size)
        with endless(bare):
            compare(f"continuous, fixed groups of {size}; {len(made)} answers", first, second, asked.repeats)


def options() -> Namespace:
    made = bench.parser(__doc__ or "")
    parts = ["generate", "streams", "pad", "batching"]
    made.add_argument("--parts", nargs="+", choices=parts, default=parts)
    made.add_argument("--new", type=int, default=128, help="tokens of an answer at most")
    made.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="256 at most")
    made.add_argument("--features", type=int, nargs="+", default=[1, 3, 6])
    made.add_argument("--scales", nargs="+", default=["cpu", "full"], help="whose adapters: files of conf/scale")
    made.add_argument("--groups", type=int, nargs="+", default=[8, 32], help="sizes beside continuous batching")
    made.add_argument("--turns", type=int, default=8, help="answers of unequal length for each of a group; 256 in all")
    made.add_argument("--lengths", type=int, nargs=2, default=[16, 256], help="the shortest and the longest of them")
    return made.parse_args()


def main() -> None:
    asked = options()
    bare, guided = bench.build(asked), bench.build(asked)
    for scale in set(asked.scales):
        adapt(guided, max(asked.features), scale)
    print(bench.machine(asked))
    print("Behind each ratio: the shortest/median/longest answer of both sides, in tokens.")
    if "generate" in asked.parts:
        generate_part(asked, bare)
    if "streams" in asked.parts:
        streams_part(asked, bare)
    if "pad" in asked.parts:
        pad_part(asked, bare, guided)
    if "batching" in asked.parts:
        batching_part(asked, bare)


if __name__ == "__main__":
    main()
