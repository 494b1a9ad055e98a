"""Requests that share a user's history, read once, beside reading it for each of them: prefill and whole answers.

    personalign bench history
    personalign bench history -- --history 1000 --requests 8 --repeats 3

The history is the system's turn of every prompt. Prefill is what it takes until each request has its first token, where
prompts are cut included; the whole adds the further tokens, all answers of the full length. Both sides are the decoder
with all requests in one group, and nothing is kept from one repetition to the next.
"""

from __future__ import annotations

import random
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import _shared as bench  # before torch: it settles the threads
import torch

from personalign.decoding.batch import Batch
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Answer, Job
from personalign.plans import Chat, Plan, Sampling, Stream
from personalign.policy.policy import Policy
from personalign.types import Message

SIDES = {"once": 0, "for each": None}  # what the decoder keeps of beginnings; without it every prompt is read whole


def chats(policy: Policy, asked: Namespace) -> list[Chat]:
    """One user's requests, each behind the same history of about so many tokens."""
    draw = random.Random(0)
    history = Message("system", bench.text(policy, draw, asked.history))
    texts = [bench.text(policy, draw, asked.request) for _ in range(asked.requests)]
    return [Chat((history, Message("user", text))) for text in texts]


class Sides:
    """Both ways to answer the same requests, and what each came to."""

    def __init__(self, policy: Policy, prompts: list[Chat], new: int) -> None:
        self.policy = policy
        plans = [Plan((Stream((prompt,)),), sampling=Sampling(max_new_tokens=new)) for prompt in prompts]
        self.jobs = [Job(str(i), plan) for i, plan in enumerate(plans)]
        self.answers: dict[str, list[Answer]] = {}
        self.prefill: dict[str, list[float]] = {name: [] for name in SIDES}

    @torch.inference_mode()
    def answer(self, name: str) -> float:
        """Make all answers: once."""
        started = time.perf_counter()
        decoder = Decoder(self.policy, len(self.jobs), prefix_tokens=SIDES[name])
        (group,) = decoder.groups(self.jobs)
        answers = [Answer(job, [(job, 0)]) for job in group]
        for answer in answers:
            answer.begin(self.policy)
        batch = Batch(self.policy, answers, decoder.prefixes)
        batch.start()
        self.prefill[name].append(time.perf_counter() - started)
        while batch.alive:
            batch.go_on()
        self.answers[name] = answers
        return 1.0

    def fed(self, name: str) -> str:
        rows = [row for answer in self.answers[name] for row in answer.rows]
        read, reused = sum(len(row.source.ids) for row in rows), sum(answer.reused for answer in self.answers[name])
        return f"{read - reused} of {read} tokens of prompts fed"

    def equal(self) -> str:
        """How many answers of both sides are the same tokens; in bf16 not all, as in groups of another size."""
        one, other = (self.answers[name] for name in SIDES)
        return f"{sum(a.tokens == b.tokens for a, b in zip(one, other, strict=True))} of {len(one)} answers equal"


def compare(sides: Sides, repeats: int) -> None:
    """Print the median seconds of both sides, and the median ratios of prefill and of the whole."""
    timed: dict[str, Callable[[], float]] = {name: partial(bench.rate, partial(sides.answer, name)) for name in SIDES}
    whole = bench.in_turn(timed, repeats)
    for name in SIDES:
        first, all_of_it = statistics.median(sides.prefill[name]), 1 / statistics.median(whole[name])
        print(f"history read {name:10s} prefill {first:7.2f} s, whole {all_of_it:7.2f} s   {sides.fed(name)}")
    prefill = {name: [1 / seconds for seconds in found] for name, found in sides.prefill.items()}
    for title, rates in (("prefill", prefill), ("whole", whole)):
        ratio = bench.ratio(*(rates[name] for name in SIDES))
        print(f"{title + ', once beside for each':44s} ratio {ratio:6.2f}   {sides.equal()}", flush=True)


def main() -> None:
    made = bench.parser(__doc__ or "")
    made.add_argument("--history", type=int, default=2000, help="tokens that the prompts share, about")
    made.add_argument("--request", type=int, default=20, help="tokens of what is asked, about")
    made.add_argument("--requests", type=int, default=16, help="of the one user")
    made.add_argument("--new", type=int, default=64, help="tokens of an answer")
    asked = made.parse_args()
    policy = bench.build(asked)
    policy.stop_ids = ()
    print(bench.machine(asked))
    prompts = chats(policy, asked)
    lengths = [len(policy.encode(prompt.messages)) for prompt in prompts]
    print(f"{len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens, {asked.new} new ones", flush=True)
    Sides(policy, prompts[:1], 2).answer("once")  # weights are packed when they are first used
    compare(Sides(policy, prompts, asked.new), asked.repeats)


if __name__ == "__main__":
    main()
