"""PAD stage 2 in the released form: a linear map of the hidden state in front of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Unpack

from personalign.alignment.batches import Item, encode
from personalign.alignment.preference import Preference, items, references
from personalign.alignment.stages import Trained, TrainedKeys
from personalign.alignment.trainees import Head
from personalign.alignment.training import Lesson, nonempty, share, train
from personalign.contracts import Data, PositiveFloat, PositiveInt, Render
from personalign.policy.heads import HiddenHead
from personalign.policy.reference import fingerprint

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting

HEAD = "pad"


class PadHiddenHead(Trained):
    """The value head of PAD's released code: width x width, the identity at first, on top of the aligned policy,
    which stays frozen (arXiv 2410.04070, algorithm 1, stage 2; its code never shipped this training).

    Trained by eq. 9 with w = 1, on the prompts that generation renders; the reference is the base without adapters.
    """

    needs = ("pairs", "policy.aligned")
    provides = ("policy.heads.pad",)
    paper = "arXiv 2410.04070, eq. 9 and algorithm 1, stage 2; its released code (commit 51bea05)"
    node = "alignment through feedback / inference-time / reward-guided decoding"

    def __init__(self, *, beta: PositiveFloat, pairs: PositiveInt | None, **trained: Unpack[TrainedKeys]) -> None:
        super().__init__(**trained)
        self.beta, self.pairs = beta, pairs

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        aligned = policy.spec.aligned
        pairs = share(nonempty(data.pairs("train"), HEAD), self.pairs)
        rows = {HEAD: encode(policy, pairs, render, self.limits)}

        def prepare() -> tuple[Preference, dict[str, list[Item]]]:
            reference = references(policy, rows, ())
            return Preference(policy, rows, reference, {HEAD: aligned}, self.beta, HEAD), items(rows)

        content = ["hidden head", fingerprint(policy, aligned), self.beta, rows]
        trainee = Head(HEAD, HiddenHead(policy.embedding.embedding_dim))
        lesson = Lesson(title=HEAD, trainee=trainee, content=content, recipe=self.recipe, prepare=prepare)
        return train(policy, fitting, lesson)
