"""Log-probabilities and features of answers under a frozen policy, computed once and kept on disk by content.

What is kept is a batch: its file is named by the hash of the weights, the deltas and the token ids of its rows, so
that a value never depends on what happened to be computed before, and an interrupted computation goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from personalign.plans import Deltas
from personalign.policy.logprobs import Branches, Pooling, answer_logprobs, answer_states, batches
from personalign.policy.policy import Policy
from personalign.policy.soft import has_soft
from personalign.runtime.files import content_hash, write_atomic
from personalign.runtime.progress import track

SAMPLED = 256  # numbers of each base tensor that go into the fingerprint
MAX_TOKENS = 2048  # rows x longest row of one forward pass
WIDTH = 512  # tokens: answers to one prompt share a row up to this length

Read = Callable[[Sequence[Branches]], Tensor]  # of rows, a value for each of their answers: [answers, ...]


def fingerprint(policy: Policy, deltas: Deltas) -> str:
    """A hash of label, type, a sample of every base tensor, and what `deltas` names with their coefficients."""
    digest = hashlib.sha256(f"{policy.label} {policy.dtype} {deltas}".encode())
    used = {f".deltas.{name}." for name, _ in deltas}
    for path, parameter in policy.model.named_parameters():
        adapter = ".deltas." in path
        if not adapter:
            digest.update(_bytes(parameter.flatten()[:: max(1, parameter.numel() // SAMPLED)]))
        elif any(name in path for name in used):
            digest.update(_bytes(parameter))
    return digest.hexdigest()


def standing(policy: Policy) -> str:
    """A hash of the policy as it stands: `fingerprint` with every adapter and steering vector, and every head."""
    every = tuple((name, 1.0) for name in (*policy.spec.adapters, *policy.vectors))
    digest = hashlib.sha256(fingerprint(policy, every).encode())
    for path, tensor in policy.heads.state_dict().items():
        digest.update(path.encode() + _bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    # Flat, since a single number without a dimension cannot be seen as bytes.
    return bytes(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())


def shared(rows: Sequence[Branches], width: int) -> list[Branches]:
    """Every different answer to every different prompt once, in rows of at most `width` tokens where possible."""
    answers: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for row in rows:
        answers.setdefault(row.prompt, {}).update(dict.fromkeys(row.answers))
    return [merged for prompt, found in answers.items() for merged in _packed(prompt, list(found), width)]


def _packed(prompt: tuple[int, ...], answers: list[tuple[int, ...]], width: int) -> list[Branches]:
    packed: list[list[tuple[int, ...]]] = []
    for answer in answers:
        if packed and len(prompt) + sum(map(len, packed[-1])) + len(answer) <= width:
            packed[-1].append(answer)
        else:
            packed.append([answer])
    return [Branches(prompt, tuple(some)) for some in packed]


def sequence_logprobs(
    policy: Policy,
    rows: Sequence[Branches],
    deltas: Deltas,
    cache: Path | None,
    description: str,
    head: str | None = None,
) -> Tensor:
    """log p(answer | prompt) of every answer of every row under `deltas`, in nats: float32 [rows, answers].

    All rows have as many answers; one that recurs behind the same prompt is read once. Nothing is computed whose
    batch is in `cache`; a damaged file is made again. Without a cache nothing is kept. `head` is a head of the
    policy; its readings are never kept, since its weights are not in the fingerprint.
    """

    def read(some: Sequence[Branches]) -> Tensor:
        return torch.stack([logp.sum() for logp in answer_logprobs(policy, some, head)])

    return torch.stack(readings(policy, rows, deltas, "logprobs", read, None if head else cache, description))


def answer_features(
    policy: Policy,
    rows: Sequence[Branches],
    deltas: Deltas,
    pooling: Pooling,
    cache: Path | None,
    description: str,
    layer: int | None = None,
) -> list[Tensor]:
    """The hidden states of every row's answers under `deltas`, the last ones or those behind a layer, pooled as
    `answer_states` does and kept as log-probabilities are: float32 [answers, width] for each row, on the CPU."""

    def read(some: Sequence[Branches]) -> Tensor:
        return answer_states(policy, some, pooling, layer)

    kind = f"features-{pooling}" if layer is None else f"features-{pooling}-{layer}"
    return readings(policy, rows, deltas, kind, read, cache, description)


def readings(
    policy: Policy,
    rows: Sequence[Branches],
    deltas: Deltas,
    kind: str,
    read: Read,
    cache: Path | None,
    description: str,
) -> list[Tensor]:
    """What `read` makes of every row's answers, each answer to a prompt once: [answers, ...] for each row.

    Of the batches this process takes its share first; `kind` names what is read, in `cache`. Readings behind soft
    tokens are not kept: the weights of these are not in the fingerprint.
    """
    if not rows:
        return []
    cache = None if has_soft([row.prompt for row in rows]) else cache
    weights = fingerprint(policy, deltas) if cache else ""
    unique = shared(rows, WIDTH)
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}
    with track(description, sum(row.length for row in unique)) as bar, policy.using(deltas), torch.no_grad():
        for batch in _dealt(batches(unique, MAX_TOKENS)):
            some = [unique[i] for i in batch]
            if cache:
                values = _kept(some, read, kind, cache / kind / weights[:16], weights)
            else:
                values = read(some).float().cpu()
            keys = [(row.prompt, answer) for row in some for answer in row.answers]
            found.update(zip(keys, values, strict=True))
            bar.advance(sum(row.length for row in some))
    return [torch.stack([found[row.prompt, answer] for answer in row.answers]) for row in rows]


def _dealt(found: list[list[int]]) -> list[list[int]]:
    """The batches with this rank's share first: what it comes to later, the others have put into the cache."""
    if not torch.distributed.is_initialized():
        return found
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return [batch for turn in range(world) for batch in found[(rank + turn) % world :: world]]


def _kept(rows: Sequence[Branches], read: Read, kind: str, folder: Path, weights: str) -> Tensor:
    key = content_hash([weights, [[row.prompt, row.answers] for row in rows]])
    path = folder / f"{key[:32]}.safetensors"
    known = _loaded(path, kind, sum(len(row.answers) for row in rows))
    if known is None:
        known = read(rows).float().cpu()
        write_atomic(path, save({kind: known}))
    return known


def _loaded(path: Path, kind: str, count: int) -> Tensor | None:
    try:
        found = load(path.read_bytes())[kind]
    except (OSError, SafetensorError, KeyError):
        return None
    return found if found.shape[:1] == (count,) else None
