"""ARGS with candidates as leaves of one cache, beside one by one, and beside a copy of the cache for each.

    personalign bench args
    personalign bench args -- --batches 4 --candidates 5 10 --repeats 3

All sides are greedy ARGS with the same model, kernels and random reward head, and answers of full length. One by one:
a candidate is one forward of one token behind the cached prefix, and the chosen one stays. A copy each: k rows a
request, every one with the whole prefix, of one forward a token; the cache is copied once, not at every token as in
ARGS' released code. What differs is how candidates are read, and nothing else.
"""

from __future__ import annotations

import random
import statistics
from argparse import Namespace
from collections.abc import Sequence
from functools import partial

import _shared as bench  # before torch: it settles the threads
import torch
from torch import Tensor

from personalign.decoding import rows as layout
from personalign.decoding.batch import Batch
from personalign.decoding.cache import RowCache
from personalign.decoding.decoder import Decoder
from personalign.decoding.prefill import prefill
from personalign.decoding.prefixes import Prefixes
from personalign.decoding.rows import Answer, Job, Row
from personalign.plans import Candidates, Chat, Plan, Sampling, Stream, Value
from personalign.policy.features import Reader
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import BradleyTerryHead, rater
from personalign.policy.trunk import Trunk
from personalign.types import Message

VALUE = Value("args")
Answers = list[list[int]]


def plans(policy: Policy, asked: Namespace, size: int, k: int) -> list[Plan]:
    """ARGS as it ships, on prompts of about so many tokens."""
    draw, weight = random.Random(0), bench.shipped("generation", "args")["weight"]
    chats = [(Chat((Message("user", bench.text(policy, draw, asked.prompt)),)),) for _ in range(size)]
    return [
        Plan(
            (Stream(chat), Stream(chat, weight, (), VALUE)),
            Candidates("top_k", k),
            Sampling(max_new_tokens=asked.new),
        )
        for chat in chats
    ]


def add_head(policy: Policy) -> None:
    """A reward that has an effect: random, of the pooling that ships."""
    head = BradleyTerryHead(
        policy.embedding.embedding_dim, Reader((), bench.shipped("alignment", "reward_head")["pooling"], 512, 256)
    )
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    policy.heads[VALUE.head] = head.requires_grad_(False)


def jobs(made: Sequence[Plan]) -> list[Job]:
    return [Job(str(i), plan) for i, plan in enumerate(made)]


def ours(policy: Policy, made: Sequence[Plan]) -> Answers:
    return [list(found.tokens) for found in Decoder(policy, len(made)).generate(jobs(made))]


class OneByOne:
    """A forward of one token for every candidate, each in a column of its own, hidden from the others."""

    def __init__(self, policy: Policy, rows: Sequence[Row], new: int, k: int) -> None:
        self.policy, self.k, self.copies = policy, k, 1
        self.cache, self.hidden = self._filled(rows, new)
        used = torch.tensor([row.used for row in rows]).repeat_interleave(self.copies)
        self.positions = used[:, None]
        mask = layout.step_mask(self.cache.get_seq_length() - used, self.cache.capacity, policy.dtype)
        self.mask = torch.zeros(1, 1, 1, self.cache.capacity, dtype=policy.dtype) if mask is None else mask

    def _filled(self, rows: Sequence[Row], new: int) -> tuple[RowCache, Tensor]:
        return prefill(self.policy, rows, Trunk(0), new + self.k, Prefixes(self.policy, 0))

    def feed(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [rows, 1] -> states [rows, width]."""
        states = self.policy.hidden(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return states[:, -1]

    def read(self, candidates: Tensor) -> Tensor:
        """candidates [requests, k] -> states [requests, k, width]."""
        found, start = [], self.cache.get_seq_length()
        for j in range(candidates.shape[1]):
            mask = self.mask[..., : start + j + 1].clone()
            mask[..., start : start + j] = float("-inf")
            found.append(self.feed(candidates[:, j : j + 1], mask))
        return torch.stack(found, 1)

    def keep(self, index: Tensor) -> None:
        self.cache.keep(index, index[:0], self.k)
        self.positions = self.positions + 1


class CopyEach(OneByOne):
    """A row with the whole prefix for every candidate; what is chosen is copied to all of its request's rows."""

    def _filled(self, rows: Sequence[Row], new: int) -> tuple[RowCache, Tensor]:
        self.copies = self.k
        cache, hidden = prefill(self.policy, rows, Trunk(0), 0, Prefixes(self.policy, 0))
        every = torch.arange(len(rows)).repeat_interleave(self.k)
        cache.select(every, every[:0], 0, new)
        return cache, hidden

    def read(self, candidates: Tensor) -> Tensor:
        stop = self.cache.get_seq_length() + 1
        return self.feed(candidates.reshape(-1, 1), self.mask[..., :stop]).view(*candidates.shape, -1)

    def keep(self, index: Tensor) -> None:
        chosen = (torch.arange(len(index)) * self.k + index).repeat_interleave(self.k)
        column = self.cache.get_seq_length() - 1
        for layer in self.cache.crown:
            for buffer in layer.buffers:
                buffer[:, :, column] = buffer[chosen, :, column]
        self.positions = self.positions + 1


@torch.inference_mode()
def theirs(side: type[OneByOne], policy: Policy, made: Sequence[Plan]) -> Answers:
    """The loop that both have: candidates, what they are worth, the best one."""
    rows = [row for job in jobs(made) for row in Answer(job, [(job, 0)]).begin(policy)]
    (weight, _), *_ = rows[0].values
    new, k = made[0].sampling.max_new_tokens, made[0].candidates.k
    head, own = rater(policy, VALUE), side(policy, rows, new, k)
    hidden, sums = own.hidden, torch.zeros_like(own.hidden, dtype=torch.float32)
    tokens: list[Tensor] = []
    for t in range(new):
        best, candidates = policy.logits(hidden).topk(k, dim=-1)
        states = own.read(candidates)
        features = head.features(sums[:, None], states, torch.tensor(t + 1))
        index = (best + weight * head.values(features, ())).argmax(-1)
        own.keep(index)
        hidden = states[torch.arange(len(index)), index]
        sums += hidden
        tokens.append(candidates.gather(1, index[:, None])[:, 0])
    return torch.stack(tokens, 1).tolist()


def memory(cache: RowCache) -> int:
    """Bytes of keys and values."""
    return sum(b.numel() * b.element_size() for layer in (*cache.trunk, *cache.crown) for b in layer.buffers)


@torch.inference_mode()
def candidate_caches(policy: Policy, made: Sequence[Plan]) -> tuple[int, int]:
    """Bytes of cache: ours, and with a copy for each candidate."""
    answers = [Answer(job, [(job, 0)]) for job in jobs(made)]
    rows = [row for answer in answers for row in answer.begin(policy)]
    batch = Batch(policy, answers, Prefixes(policy, 0))
    batch.start()
    copied = CopyEach(policy, rows, made[0].sampling.max_new_tokens, made[0].candidates.k)
    return memory(batch.cache), memory(copied.cache)


def compare(policy: Policy, asked: Namespace, size: int, k: int) -> None:
    made = plans(policy, asked, size, k)
    answers: dict[str, Answers] = {}

    def side(name: str) -> float:
        work = {"one by one": OneByOne, "a copy each": CopyEach}
        answers[name] = theirs(work[name], policy, made) if name in work else ours(policy, made)
        return sum(map(len, answers[name]))

    names = ("leaves", "one by one", "a copy each")
    found = bench.in_turn({name: partial(bench.rate, partial(side, name)) for name in names}, asked.repeats)
    first = statistics.median(found["leaves"])
    for name in names[1:]:
        pairs = [
            pair
            for one, other in zip(answers["leaves"], answers[name], strict=True)
            for pair in zip(one, other, strict=True)
        ]
        alike = sum(a == b for a, b in pairs) / len(pairs)
        print(
            f"leaves, {name}; {size} requests, k = {k:<3d}".ljust(44)
            + f"{first:8.2f} {statistics.median(found[name]):8.2f} tokens/s   "
            + f"ratio {bench.ratio(found['leaves'], found[name]):6.2f}   {alike:.0%} of tokens alike",
            flush=True,
        )
    mine, copied = candidate_caches(policy, made)
    print(
        f"cache of {size} requests, k = {k}: {mine / 2**20:.1f} MB beside {copied / 2**20:.1f} MB, {mine / copied:.3f}"
    )


def options() -> Namespace:
    made = bench.parser(__doc__ or "")
    made.add_argument("--new", type=int, default=32, help="tokens of an answer")
    made.add_argument("--prompt", type=int, default=60, help="tokens of a prompt, about")
    made.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="requests side by side")
    made.add_argument("--candidates", type=int, nargs="+", default=[10])
    return made.parse_args()


def main() -> None:
    asked = options()
    policy = bench.build(asked)
    policy.stop_ids = ()  # all answers have full length
    add_head(policy)
    print(bench.machine(asked))
    for size in asked.batches:
        for k in asked.candidates:
            compare(policy, asked, size, k)


if __name__ == "__main__":
    main()
