"""A corrector: fine-tuning on making the chosen answer of the rejected one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from personalign.alignment.batches import Item, Limits, answer_ids
from personalign.alignment.preference import Imitation, items
from personalign.alignment.stages import Adapted, AdaptedKeys
from personalign.alignment.training import Lesson, nonempty, share, train
from personalign.contracts import Data, Fraction, Render
from personalign.policy.logprobs import Branches
from personalign.policy.reference import fingerprint
from personalign.policy.truncation import encode_within
from personalign.types import Messages, Pair

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class Aligner(Adapted):
    """One LoRA adapter on the base by the likelihood of the chosen answer on the prompt that asks to correct the
    rejected one (Aligner, arXiv 2402.02416), for `copies` of the pairs also to correct the chosen one.

    Aligner trains on the copies first, here all rows are of one training. With the user's preference in that prompt
    (generation=metaaligner) it is MetaAligner's objective without its stages, which `metaaligner` has. The adapter
    serves as corrector alone: answers are drafted without it.
    """

    needs = ("pairs", "prompt.draft")
    provides = ("policy.corrector",)
    paper = "arXiv 2402.02416 (Aligner)"
    node = "alignment through feedback / inference-time / output refinement"

    def __init__(self, *, copies: Fraction, **adapted: Unpack[AdaptedKeys]) -> None:
        super().__init__(**adapted)
        self.copies = copies

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        corrector = ((self.adapter, 1.0),)
        pairs = share(nonempty(data.pairs("train"), self.adapter), self.pairs)
        self.limits.check(policy)
        rows = {self.adapter: corrections(policy, [*pairs, *copied(pairs, self.copies)], render, self.limits)}

        def prepare() -> tuple[Imitation, dict[str, list[Item]]]:
            return Imitation(policy, rows, {self.adapter: corrector}), items(rows)

        content = ["aligner", fingerprint(policy, ()), self.adapters, rows[self.adapter]]
        lesson = Lesson(title=self.adapter, trainee=self.adapters, content=content, recipe=self.recipe, prepare=prepare)
        figures = train(policy, fitting, lesson)
        policy.spec = replace(policy.spec, corrector=corrector)
        return figures


def corrections(policy: Policy, pairs: Sequence[Pair], render: Render, limits: Limits) -> list[Branches]:
    """The chosen answer behind the prompt that shows the other one and asks for a better one."""
    prompts = [render(pair.request, draft=pair.rejected) for pair in pairs]
    return edited(policy, pairs, prompts, limits)


def edited(policy: Policy, pairs: Sequence[Pair], prompts: Sequence[Messages], limits: Limits) -> list[Branches]:
    """The chosen answer of each pair behind its prompt; what recurs counts once."""
    rows = []
    for pair, messages in zip(pairs, prompts, strict=True):
        prompt = encode_within(policy, messages, limits.max_prompt, pair.request.id)
        rows.append(Branches(tuple(prompt), (answer_ids(policy, pair.chosen, limits.max_answer),)))
    return list(dict.fromkeys(rows))


def copied(pairs: Sequence[Pair], part: float) -> list[Pair]:
    """Of a part of the pairs, every user's first ones first, the chosen answer as its own draft."""
    return [replace(pair, rejected=pair.chosen) for pair in share(pairs, round(part * len(pairs)))]
