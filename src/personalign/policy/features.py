"""How an answer becomes features: what a frozen policy's last hidden states say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from personalign.plans import Deltas
from personalign.policy.logprobs import Branches, Pooling
from personalign.policy.policy import Policy
from personalign.policy.reference import answer_features
from personalign.policy.truncation import encode_within
from personalign.runtime import traces
from personalign.types import Messages


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads answers to the plain request under `deltas`: the last hidden state at an answer's end of text (`last`), or
    the mean over its tokens (`mean`).

    A prompt has at most `max_prompt` tokens, an answer `max_answer`, its end of text among them: that token stands
    behind every answer, whole or cut, so that all are read at the same place. Who trains a head and who uses it read
    by the same reader.
    """

    deltas: Deltas
    pooling: Pooling
    max_prompt: int
    max_answer: int

    def row(self, policy: Policy, messages: Messages, texts: Sequence[str], name: str) -> Branches:
        """A prompt with the answers behind it; `name` is the request's, for messages."""
        prompt = encode_within(policy, messages, self.max_prompt, name)
        encoded = [policy.encode_answer(text) for text in texts]
        return Branches(tuple(prompt), tuple((*ids[:-1][: self.max_answer - 1], ids[-1]) for ids in encoded))

    def features(
        self, policy: Policy, rows: Sequence[Branches], description: str, user: str | None = None
    ) -> list[Tensor]:
        """Of every row, the features of its answers: float32 [answers, width] on the CPU, from the policy's cache; of a
        `user`'s rows from where they go when that user is forgotten."""
        cache = policy.cache if policy.cache is None or user is None else traces.folder(policy.cache, user)
        return answer_features(policy, rows, self.deltas, self.pooling, cache, description)
