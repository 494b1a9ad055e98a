"""An encoder of users' histories as soft tokens, trained behind a frozen language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import torch

from personalign.alignment.batches import encode
from personalign.alignment.learner import Objective
from personalign.alignment.preference import Imitation, Preference, items, references
from personalign.alignment.stages import Trained, TrainedKeys
from personalign.alignment.trainees import Head, drawn
from personalign.alignment.training import Items, Lesson, nonempty, share, train
from personalign.contracts import Data, Guide, NaturalInt, PositiveFloat, PositiveInt, Recall, Render, UserError
from personalign.plans import Soft
from personalign.policy.history_tokens import HistoryTokens
from personalign.policy.logprobs import Branches
from personalign.policy.prefix import HEAD, history_prefix
from personalign.policy.reference import fingerprint
from personalign.runtime.files import sha256
from personalign.types import Pair

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class HistoryEncoder(Trained):
    """A small network that makes soft tokens of the vectors of a user's past texts, learned from all users' pairs: by
    the likelihood of what they chose (`nll`, as in PPlug and E2P) or by DPO against the policy without soft tokens.

    The language model, with what stages before made of it, and the texts' encoder are frozen; so whoever has a history
    is served, in training or not. Pairs of users without a history teach nothing and are left out. Raises UserError
    where the soft tokens fill the prompt, and where no user has a history.
    """

    needs = ("pairs", "state.history", "state.vectors.request")
    provides = ("policy.heads.history",)
    paper = "arXiv 2409.11901 (PPlug); arXiv 2505.17051 (E2P)"
    node = "alignment through feedback / training-time / parameter-efficient"

    def __init__(
        self,
        *,
        form: Literal["attention", "mean"],
        tokens: PositiveInt,
        instruction: NaturalInt,
        hidden: PositiveInt,
        objective: Literal["dpo", "nll"],
        beta: PositiveFloat,
        pairs: PositiveInt | None,
        **trained: Unpack[TrainedKeys],
    ) -> None:
        super().__init__(**trained)
        text = self.limits.max_prompt - tokens - instruction
        if text < 1:
            raise UserError(
                f"tokens={tokens} and instruction={instruction} of alignment leave no room for text in "
                f"max_prompt={self.limits.max_prompt}: take fewer"
            )
        self.form, self.tokens, self.instruction, self.hidden = form, tokens, instruction, hidden
        self.text = replace(self.limits, max_prompt=text)
        self.objective, self.beta, self.pairs = objective, beta, pairs
        self.recall: Recall | None = None

    def bind(self, guide: Guide | None, recall: Recall) -> None:
        self.recall = recall

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        before = policy.spec.aligned
        self.limits.check(policy)
        told = self._told(share(nonempty(data.pairs("train"), HEAD), self.pairs))
        encoded = encode(policy, [pair for pair, _ in told], render, self.text)
        read = [row if self.objective == "dpo" else Branches(row.prompt, row.answers[:1]) for row in encoded]
        # What one user has said twice counts once.
        unique = list(dict.fromkeys(zip((soft for _, soft in told), read, strict=True)))
        softs, rows = [soft for soft, _ in unique], [row for _, row in unique]

        def prepare() -> tuple[Objective, Items]:
            behind, deltas = {HEAD: Behind(policy, softs, rows)}, {HEAD: before}
            if self.objective == "nll":
                return Imitation(policy, behind, deltas), items({HEAD: rows})
            reference = references(policy, {HEAD: rows}, before)
            return Preference(policy, behind, reference, deltas, self.beta), items({HEAD: rows})

        made = [self.form, self.tokens, self.instruction, self.hidden]
        learned = [self.objective, self.beta, rows, [_digest(soft) for soft in softs]]
        head = Head(HEAD, self.head(policy, len(softs[0].args[0]), fitting.seed))
        content = ["history encoder", fingerprint(policy, before), made, learned]
        lesson = Lesson(title=HEAD, trainee=head, content=content, recipe=self.recipe, prepare=prepare)
        return train(policy, fitting, lesson)

    def _told(self, pairs: Sequence[Pair]) -> list[tuple[Pair, Soft]]:
        """The pairs whose users have a history before them, each with the segment that stands before its prompt."""
        if self.recall is None:
            raise RuntimeError("history encoders read what memory recalls: call bind first")
        states = self.recall([pair.request for pair in pairs])
        found = [(pair, history_prefix(state)) for pair, state in zip(pairs, states, strict=True)]
        told = [(pair, soft) for pair, soft in found if soft is not None]
        if not told:
            raise UserError(
                "no user has a text before any of their training pairs, which a history is encoded of: "
                "let memory.history_vectors.kinds name kinds of event that the data have"
            )
        return told

    def head(self, policy: Policy, encoded: int, seed: int) -> HistoryTokens:
        """A fresh network for vectors of this width. The instruction begins as embeddings of random tokens."""
        embeddings = policy.embedding.weight.detach().float().cpu()
        size = float(embeddings.square().mean().sqrt())
        with drawn(seed, HEAD):
            start = embeddings[torch.randint(len(embeddings), (self.instruction,))]
            return HistoryTokens(self.form, encoded, self.hidden, self.tokens, start, size)


class Behind(Sequence[Branches]):
    """Rows behind soft tokens, which have numbers once the head that makes them is there."""

    def __init__(self, policy: Policy, softs: Sequence[Soft], rows: Sequence[Branches]) -> None:
        self.policy, self.softs, self.rows = policy, softs, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        row = self.rows[number]
        return Branches(self.policy.soft_ids(self.softs[number]) + row.prompt, row.answers)


def _digest(soft: Soft) -> str:
    return sha256(np.array(soft.args, dtype=np.float32).tobytes())
