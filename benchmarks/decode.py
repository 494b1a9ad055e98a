"""The decoder, side by side in one process: against transformers' generate, and plans of several streams against one.

    personalign bench decode

Prints tokens/s (median of the repeats) and ratios. Every pair of figures is measured in turn, so that a slow moment of
the machine meets both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from personalign.runtime.threads import configure

configure()

import torch  # noqa: E402 - threads are settled before

from personalign.decoding.decoder import Decoder  # noqa: E402
from personalign.decoding.rows import Job  # noqa: E402
from personalign.policy.loading import Pretrained  # noqa: E402
from personalign.policy.lora import LoRAConfig  # noqa: E402
from personalign.policy.policy import Policy  # noqa: E402
from personalign.types import Candidates, Chat, Message, Plan, Sampling, Stream  # noqa: E402

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ASKED = ("What is the capital of France?", "Explain photosynthesis.", "Write a thank-you note.", "Name three rivers.")


def prompts(n: int) -> list[Chat]:
    """Short and long answers in turn, so that rows leave the batch at different times."""
    return [Chat((Message("user", f"{ASKED[i % len(ASKED)]} ({i})"),)) for i in range(n)]


def plans(chats: list[Chat], features: int, new: int) -> list[Plan]:
    """PAD with so many features, each a LoRA adapter on the same base; 0 is the base alone."""
    sampling = Sampling(max_new_tokens=new)
    if not features:
        return [Plan((Stream((chat,)),), sampling=sampling) for chat in chats]
    guides = [(f"f{k}", 0.8 / features) for k in range(features)]
    return [
        Plan(
            (Stream((chat,), 0.2), *[Stream((chat,), weight, ((name, 1.0),)) for name, weight in guides]),
            Candidates("top_k", 10),
            sampling,
        )
        for chat in chats
    ]


def ours(policy: Policy, made: list[Plan]) -> int:
    """Tokens of the answers."""
    jobs = [Job(str(i), plan) for i, plan in enumerate(made)]
    return sum(r.cost.new_tokens for r in Decoder(policy, len(jobs)).generate(jobs))


def theirs(policy: Policy, chats: list[Chat], new: int) -> int:
    """transformers' greedy generate on the same prompts, left-padded."""
    ids = [policy.encode(chat.messages) for chat in chats]
    width = max(map(len, ids))
    batch = torch.tensor([[policy.pad_id] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    found = policy.model.generate(
        batch, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=policy.pad_id
    )
    rows = [row.tolist() for row in found[:, width:]]
    stops = [next((i + 1 for i, t in enumerate(row) if t in policy.stop_ids), new) for row in rows]
    return sum(stops)


def rate(work: Callable[[], int]) -> float:
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def compare(title: str, first: Callable[[], int], second: Callable[[], int], repeats: int) -> None:
    """Print the median rate of both, and the median of the ratios of neighbours."""
    pairs = [(rate(first), rate(second)) for _ in range(repeats)]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(x / y for x, y in pairs)
    print(f"{title:58s} {a:8.1f} {b:8.1f} tokens/s   ratio {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new", type=int, default=128, help="tokens of an answer at most")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--features", type=int, nargs="+", default=[1, 3, 6])
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    asked = parser.parse_args()
    policy = Pretrained(name="smollm2", revision=None).build(Path("~/.cache/personalign").expanduser(), asked.precision)
    for k in range(max(asked.features)):
        policy.add_adapter(f"f{k}", LoRAConfig(8, 16.0, 0.0, TARGETS))
    ours(policy, plans(prompts(2), 1, 4))
    for size in asked.batches:
        chats = prompts(size)
        base = plans(chats, 0, asked.new)
        compare(
            f"one stream against generate, batch {size}",
            lambda base=base: ours(policy, base),
            lambda chats=chats: theirs(policy, chats, asked.new),
            asked.repeats,
        )
        for features in asked.features:
            guided = plans(chats, features, asked.new)
            compare(
                f"PAD with {features} features against one stream, batch {size}",
                lambda guided=guided: ours(policy, guided),
                lambda base=base: ours(policy, base),
                asked.repeats,
            )


if __name__ == "__main__":
    main()
