"""PAD stage 2 where the preference is text: from a user's statement to the weights of the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from personalign.alignment.batches import Indices, Item, encode
from personalign.alignment.losses import margins, pad_loss
from personalign.alignment.stages import Trained, TrainedKeys
from personalign.alignment.trainees import Head
from personalign.alignment.training import Lesson, nonempty, share, train
from personalign.contracts import Data, PositiveFloat, PositiveInt, Render, UserError
from personalign.policy.heads import StanceHead, embed
from personalign.policy.reference import fingerprint, sequence_logprobs
from personalign.types import Pair

if TYPE_CHECKING:
    from personalign.policy.logprobs import Branches
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting

HEAD = "stance"


class PadStanceHead(Trained):
    """w = tanh(head(embedding of the user's statement)), by eq. 9 with the features frozen (arXiv 2410.04070,
    algorithm 1, stage 2). Memory `stance_head` reads it. Pairs of users without a statement take no part."""

    needs = ("pairs", "events.statement", "policy.features")
    provides = ("policy.heads.stance",)
    paper = "arXiv 2410.04070, eq. 9 and algorithm 1, stage 2 (K features: our reading)"
    node = "alignment through feedback / inference-time / reward-guided decoding"

    def __init__(self, *, beta: PositiveFloat, pairs: PositiveInt | None, **trained: Unpack[TrainedKeys]) -> None:
        super().__init__(**trained)
        self.beta, self.pairs = beta, pairs

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        pairs = nonempty(data.pairs("train"), HEAD)
        told = {pair.id: text for pair in pairs if (text := said(data, pair)) is not None}
        chosen = share([pair for pair in pairs if pair.id in told], self.pairs)
        if not chosen:
            raise UserError(
                "no user with training pairs stated a preference, which the stance head is trained on: "
                "choose data with statements, or memory=stance_stated without alignment=pad_stance_head"
            )
        rows = encode(policy, chosen, render, self.limits)
        texts = [told[pair.id] for pair in chosen]
        head = StanceHead(tuple(policy.spec.features), policy.embedding.embedding_dim)

        def prepare() -> tuple[Stances, dict[str, list[Item]]]:
            embeddings = {text: embed(policy, text).cpu() for text in dict.fromkeys(texts)}
            head.standardise(torch.stack(list(embeddings.values())))
            features = feature_margins(policy, rows)
            statements = torch.stack([embeddings[text] for text in texts])
            return Stances(head, statements, features, self.beta), {HEAD: [Item(1, i) for i in range(len(rows))]}

        weights = [fingerprint(policy, deltas) for deltas in policy.spec.features.values()]
        content = ["stance head", weights, list(policy.spec.features), self.beta, texts, rows]
        trainee = Head(HEAD, head)
        lesson = Lesson(title=HEAD, trainee=trainee, content=content, recipe=self.recipe, prepare=prepare, light=True)
        return train(policy, fitting, lesson)


class Stances:
    """Eq. 9 on known margins [pairs, K], with the weights that the head reads in embeddings [pairs, width]."""

    def __init__(self, head: StanceHead, statements: Tensor, margins: Tensor, beta: float) -> None:
        self.head, self.statements, self.margins, self.beta = head, statements, margins, beta

    def __call__(self, batch: Indices) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = self.head.linear.weight.device
        known = self.margins[batch[HEAD]].to(device)
        weights = self.head(self.statements[batch[HEAD]].to(device))
        accuracy = ((weights * known).sum(-1) > 0).float().mean()
        return pad_loss(known, weights, self.beta).mean(), {"accuracy": accuracy}


def said(data: Data, pair: Pair) -> str | None:
    """The newest preference that the pair's user had stated when the pair was made."""
    request = pair.request
    stated = [e for e in data.events(request.user) if e.kind == "statement" and e.time < request.time]
    return str(max(stated, key=lambda event: event.time).payload["text"]) if stated else None


def feature_margins(policy: Policy, rows: Sequence[Branches]) -> Tensor:
    """log pihat_k/p_ref (chosen) - log pihat_k/p_ref (rejected) of every pair and feature: [pairs, K], in nats."""
    reference = sequence_logprobs(policy, rows, (), policy.cache, "reference log-probs")
    found = [
        margins(sequence_logprobs(policy, rows, deltas, policy.cache, f"feature {dimension}"), reference)
        for dimension, deltas in policy.spec.features.items()
    ]
    return torch.stack(found, dim=-1)
