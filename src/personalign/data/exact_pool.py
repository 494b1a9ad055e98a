"""The prompts of `exact_users`, and pools of answers that a base model gave to them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_args

from personalign.contracts import UserError
from personalign.runtime.files import plain_errors, sha256, write_atomic
from personalign.types import Split

PROMPTS = Path(__file__).with_name("exact_prompts.jsonl")
SHIPPED = Path(__file__).with_name("pools") / "smollm2.jsonl.gz"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question of the test-bed: `topic` is what the contextual users' preferences depend on."""

    id: str
    topic: str
    split: Split
    text: str


@dataclass(frozen=True, slots=True)
class Pool:
    """`answers[text of a prompt]`: samples of one model; `header` says of which, and how they were drawn."""

    header: Mapping[str, Any]
    answers: Mapping[str, tuple[str, ...]]

    @property
    def digest(self) -> str:
        """The SHA-256 of the answers."""
        return cast(str, self.header["body"])


@lru_cache(maxsize=1)
def prompts() -> tuple[Prompt, ...]:
    """All prompts, in the order of the file."""
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    return tuple(Prompt(**row) for row in rows)


def topics() -> list[str]:
    return sorted({prompt.topic for prompt in prompts()})


def of_split(split: str, limit: int | None) -> list[Prompt]:
    """The first `limit` prompts of a split, taking topics in turn, so that few prompts have many topics."""
    if split not in get_args(Split):
        raise ValueError(f"no split {split!r}")
    rank: dict[str, int] = {}
    ranked = []
    for prompt in prompts():
        if prompt.split == split:
            rank[prompt.topic] = rank.get(prompt.topic, -1) + 1
            ranked.append((rank[prompt.topic], prompt))
    return [prompt for _, prompt in sorted(ranked, key=lambda item: item[0])][:limit]


def write_pool(path: Path, header: Mapping[str, Any], answers: Mapping[str, Sequence[str]]) -> None:
    """Write a pool whole or not at all: a header with the SHA-256 of the rest, then a line per prompt."""
    rows = [json.dumps({"prompt": p, "answers": list(a)}, ensure_ascii=False) for p, a in answers.items()]
    body = "".join(row + "\n" for row in rows).encode()
    first = json.dumps({"format": FORMAT, **header, "body": sha256(body)}, ensure_ascii=False)
    write_atomic(path, gzip.compress(first.encode() + b"\n" + body, mtime=0))


def read_pool(path: Path) -> Pool:
    """Read a pool. Raises UserError where the file is absent, damaged or of another format."""
    with plain_errors(path, "read"):
        data = path.read_bytes()
    try:
        first, _, body = gzip.decompress(data).partition(b"\n")
        header = json.loads(first)
        _verify(header, body)
        rows = [json.loads(line) for line in body.splitlines()]
        answers = {row["prompt"]: tuple(row["answers"]) for row in rows}
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        remedy = "reinstall personalign" if path == SHIPPED else "delete it, or give another data.pool"
        raise UserError(f"{path}: this pool of answers is damaged ({error}); {remedy}") from error
    return Pool(header, answers)


def _verify(header: Any, body: bytes) -> None:
    if header["format"] != FORMAT:
        raise ValueError(f"its format is {header['format']}, {FORMAT} is expected")
    if header["body"] != sha256(body):
        raise ValueError("its SHA-256 is not the one in its header")
