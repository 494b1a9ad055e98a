"""PAD and Amulet, batched and cached, beside loops that do what their released code does.

    personalign bench released
    personalign bench released -- --parts pad --settings 500x8 300x16
    personalign bench released -- --parts amulet --amulet-loop 8

Neither release keeps a cache: for every token, all of its forwards read the prompt and the answer so far again, and
make the logits of all positions. The loops are transformers' own model doing work of that size; what they leave out of
the releases' (below) would only slow them down. Nothing ends an answer, as in PAD's release.

- PAD (commit 51bea05) answers one prompt after another, in two forwards a token. Its rate does not depend on how many
  prompts there are, since all have one length: it is timed on `--looped` of them, with all 128 tokens of each
  (`--pad-loop`). Left out are the reward model's value head with its second product with the vocabulary, and caches
  that are filled and thrown away.
- Amulet (commit 9d607f0) answers four prompts side by side, in two forwards a token and 60 rounds of its game, each
  with softmaxes over the vocabulary at all positions, of which only the last one is read. It is timed like that, and
  with forwards and rounds that make the last position alone. It makes `--amulet-loop` tokens of each answer: the
  first ones are the cheapest, so that this is in its favour. Left out is the cut to the likeliest tokens, of which it
  takes the likeliest.

Each line says how many of the tokens that both sides gave are alike: in `--precision fp32` all but near ties.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from functools import partial
from typing import Any

import _answers as answers
import _shared as bench  # before torch: it settles the threads
import torch
from _answers import Answers
from torch import Tensor

from personalign.generation.context_steering import amulet_strength
from personalign.plans import Chat, Plan
from personalign.policy import lora
from personalign.policy.policy import Policy

GAME = bench.shipped("generation", "amulet")


@torch.inference_mode()
def recomputed(base: Any, guide: Any, prompt: list[int], new: int) -> list[int]:
    """PAD's release: one prompt, every token reads the whole prefix again in both models."""
    ids = list(prompt)
    for _ in range(new):
        prefix = torch.tensor([ids])
        best, top = base(prefix, use_cache=False).logits[0, -1].topk(answers.TOP)
        guided = guide(prefix, use_cache=False).logits[0, -1][top]
        reward = guided.float().log_softmax(-1) - best.float().log_softmax(-1)
        ids.append(int(top[(best.float() + answers.BETA * reward).argmax()]))
    return ids[len(prompt) :]


def looped(base: Any, guide: Any, prompts: list[list[int]], new: int) -> Answers:
    return [recomputed(base, guide, prompt, new) for prompt in prompts]


def game(told: Tensor, plain: Tensor, rounds: int) -> Tensor:
    """Amulet's rounds on logits [rows, positions, vocabulary]: the last position's score [rows, vocabulary].

    Every round makes the distribution anew at all positions, and changes it at the last one.
    """
    alpha, lambda_, eta = GAME["alpha"], GAME["lambda_"], GAME["eta"]
    player, plain = told.softmax(-1).log(), plain.softmax(-1).log()
    now = first = player[:, -1].clone()
    utility = torch.zeros_like(first)
    for t in range(1, rounds + 1):
        utility += alpha * (now - plain[:, -1])
        player[:, -1] = (lambda_ * first + utility / t + now / (eta * t)) / (lambda_ + 1.0 / (eta * t))
        if t < rounds:
            player = player.softmax(-1).log()
            now = player[:, -1]
    return player[:, -1]


@torch.inference_mode()
def played(model: Any, told: Tensor, plain: Tensor, new: int, rounds: int, keep: int) -> Answers:
    """Amulet's release: prompts [rows, tokens] side by side, both read again for every token; `keep` positions' logits
    are made, 0 for all."""
    start = told.shape[1]
    for _ in range(new):
        scores = [model(ids, use_cache=False, logits_to_keep=keep).logits.float() for ids in (told, plain)]
        token = game(scores[0], scores[1], rounds).argmax(-1, keepdim=True)
        told, plain = torch.cat([told, token], 1), torch.cat([plain, token], 1)
    return [row[start:] for row in told.tolist()]


@torch.no_grad()
def guide(asked: Namespace, policy: Policy, adapter: str) -> Any:
    """A model of its own, as the release has, with the adapter in its weights; before, it is given an effect."""
    model, draw = bench.plain(asked), torch.Generator().manual_seed(0)
    for path, layer in lora.layers(policy.model):
        if adapter in layer.deltas:
            delta = layer.delta(adapter)
            torch.nn.init.normal_(delta.B, std=0.05, generator=draw)
            model.get_submodule(path).weight += (delta.scale * delta.B @ delta.A).to(model.dtype)
    return model


def pad_part(asked: Namespace, policy: Policy) -> None:
    """The loop is measured once beside all batches of one length."""
    models = bench.plain(asked), guide(asked, policy, answers.name(0, "full"))
    batches: dict[int, list[int]] = {}
    for prompt, size in asked.settings:
        batches.setdefault(prompt, []).append(size)
    for prompt, sizes in batches.items():
        chats = answers.documents(policy, max(asked.looped, *sizes), prompt)
        ids = [policy.encode(chat.messages) for chat in chats[: asked.looped]]
        sides = {
            str(n): partial(answers.ours, policy, answers.plans(chats[:n], 1, asked.new)) for n in dict.fromkeys(sizes)
        }
        found = answers.measure({"loop": partial(looped, *models, ids, asked.pad_loop), **sides}, asked.repeats)
        for size in sides:
            title = f"PAD, its release's loop; {prompt} tokens, batch {size}"
            found.tell(title, size, "loop", f", {found.alike(size, 'loop')}")


def read(policy: Policy, made: list[Plan], stream: int) -> Tensor:
    """The prompts of one stream [plans, tokens], which all have one length."""
    chats = [plan.streams[stream].prompt[0] for plan in made]
    return torch.tensor([policy.encode(chat.messages) for chat in chats if isinstance(chat, Chat)])


def amulet_part(asked: Namespace, policy: Policy) -> None:
    model = bench.plain(asked)
    strength = amulet_strength(asked.rounds, GAME["alpha"], GAME["lambda_"], GAME["eta"])
    chats = answers.documents(policy, max(asked.batch, asked.released_batch), asked.prompt)
    made = answers.steered(chats, asked.new, strength)
    told, plain = (read(policy, made[: asked.released_batch], stream) for stream in (0, 1))
    loops = {"its release's loop": 0, "that at last positions": 1}
    sides = {k: partial(played, model, told, plain, asked.amulet_loop, asked.rounds, keep) for k, keep in loops.items()}
    found = answers.measure({"ours": partial(answers.ours, policy, made[: asked.batch]), **sides}, asked.repeats)
    for side in sides:
        title = f"Amulet, {side}; {asked.prompt} tokens, batch {asked.batch}"
        found.tell(title, "ours", side, f", {found.alike('ours', side)}")


def setting(text: str) -> tuple[int, int]:
    prompt, _, size = text.partition("x")
    if not (prompt.isdigit() and size.isdigit() and int(size)):
        raise ArgumentTypeError(f"{text!r} is not tokens x prompts, such as 500x8")
    return int(prompt), int(size)


def options() -> Namespace:
    made = bench.parser(__doc__ or "")
    made.add_argument("--parts", nargs="+", choices=["pad", "amulet"], default=["pad", "amulet"])
    made.add_argument("--new", type=int, default=128, help="tokens of an answer of ours")
    made.add_argument(
        "--settings",
        nargs="+",
        type=setting,
        metavar="TOKENSxPROMPTS",
        default=[(500, 1), (500, 8), (300, 16)],
        help="of PAD: how long prompts are, and how many we answer side by side",
    )
    made.add_argument("--looped", type=int, default=1, help="of these prompts so many for PAD's loop")
    made.add_argument("--pad-loop", type=int, default=128, help="tokens of each answer that PAD's loop makes")
    made.add_argument("--prompt", type=int, default=300, help="tokens of Amulet's prompts without the preference")
    made.add_argument("--batch", type=int, default=16, help="of Amulet's prompts so many side by side by us")
    made.add_argument("--released-batch", type=int, default=4, help="and so many by Amulet's loop")
    made.add_argument("--amulet-loop", type=int, default=1, help="tokens of each answer that Amulet's loop makes")
    made.add_argument("--rounds", type=int, default=GAME["iterations"], help="of Amulet's game")
    made.set_defaults(repeats=3)
    return made.parse_args()


def main() -> None:
    asked = options()
    policy = bench.build(asked)
    answers.adapt(policy, 1, "full")
    print(bench.machine(asked))
    print("Behind each ratio: the shortest/median/longest answer of both sides, in tokens.")
    with answers.endless(policy):
        if "pad" in asked.parts:
            print(f"PAD's loop answers {asked.looped} of the prompts of each length, {asked.pad_loop} tokens each.")
            pad_part(asked, policy)
        if "amulet" in asked.parts:
            print(f"Amulet's loop makes {asked.amulet_loop} tokens of {asked.released_batch} answers side by side.")
            amulet_part(asked, policy)


if __name__ == "__main__":
    main()
