"""P-DPO: soft tokens for every user, and for nobody in particular, by preference pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from torch import Tensor

from personalign.alignment.batches import Indices, Item, encode
from personalign.alignment.losses import dpo_loss, margins
from personalign.alignment.preference import items, references
from personalign.alignment.stages import Trained, TrainedKeys
from personalign.alignment.trainees import Adapters, Head, Together, Trainee
from personalign.alignment.training import Lesson, nonempty, share, train
from personalign.contracts import (
    Data,
    Fraction,
    FractionBelowOne,
    Names,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Render,
    UserError,
)
from personalign.plans import Soft
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.lora import LoRAConfig
from personalign.policy.reference import fingerprint, shared
from personalign.policy.user_tokens import ClusterTokens, IndividualTokens, UserTokens
from personalign.runtime.seeds import derive

if TYPE_CHECKING:
    from personalign.plans import Deltas
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting

HEAD = "soft_tokens"


class SoftTokens(Trained):
    """`tokens` vectors a user stand before the prompt that generation renders, and are learned from that user's pairs
    (P-RLHF and its P-DPO, arXiv 2402.05133). Generation `soft_tokens` puts them there.

    The loss is user_weight times DPO's with the tokens of the pair's user, and the rest of one times DPO's with the
    generic tokens, which serve users who are in no pair. The reference is the policy as it stands before, without
    soft tokens. With an `adapter` a LoRA adapter learns beside them, as there; null leaves the policy as it is.
    Raises UserError where the soft tokens fill the prompt.
    """

    needs = ("pairs",)
    provides = ("policy.heads.soft_tokens",)
    paper = "arXiv 2402.05133 (P-RLHF, P-DPO); its released code"
    node = "alignment through feedback / training-time / parameter-efficient"

    def __init__(
        self,
        *,
        user_model: Literal["individual", "cluster"],
        tokens: PositiveInt,
        clusters: PositiveInt,
        start: Literal["vocabulary", "uniform"],
        user_weight: Fraction,
        adapter: str | None,
        rank: PositiveInt,
        alpha: PositiveFloat,
        dropout: FractionBelowOne,
        targets: Names,
        depth: PositiveFraction,
        beta: PositiveFloat,
        pairs: PositiveInt | None,
        **trained: Unpack[TrainedKeys],
    ) -> None:
        super().__init__(**trained)
        if tokens >= self.limits.max_prompt:
            raise UserError(
                f"alignment.soft_tokens.tokens={tokens} leaves no room for text in max_prompt="
                f"{self.limits.max_prompt}: take fewer"
            )
        self.user_model, self.tokens, self.clusters, self.start = user_model, tokens, clusters, start
        config = LoRAConfig(rank, alpha, dropout, tuple(targets))
        self.adapters = Adapters((adapter,), config, depth) if adapter else None
        self.beta, self.user_weight, self.pairs = beta, user_weight, pairs

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        before = policy.spec.aligned
        after = (*before, *((name, 1.0) for name in (self.adapters.names if self.adapters else ())))
        pairs = share(nonempty(data.pairs("train"), HEAD), self.pairs)
        self.limits.check(policy)
        text = replace(self.limits, max_prompt=self.limits.max_prompt - self.tokens)
        rows, users = encode(policy, pairs, render, text), [pair.request.user for pair in pairs]

        def prepare() -> tuple[Personal, dict[str, list[Item]]]:
            reference = references(policy, {HEAD: rows}, before)[HEAD]
            return Personal(policy, rows, users, reference, after, self.beta, self.user_weight), items({HEAD: rows})

        made = [self.user_model, self.tokens, self.clusters, self.start, self.adapters]
        content = ["soft tokens", fingerprint(policy, before), made, self.beta, self.user_weight, users, rows]
        trainee = self._trainee(policy, list(dict.fromkeys(users)), fitting.seed)
        lesson = Lesson(title=HEAD, trainee=trainee, content=content, recipe=self.recipe, prepare=prepare)
        figures = train(policy, fitting, lesson)
        policy.spec = replace(policy.spec, aligned=after)
        return figures

    def _trainee(self, policy: Policy, users: Sequence[str], seed: int) -> Trainee:
        head = Head(HEAD, self.head(policy, users, torch.Generator().manual_seed(derive(seed, HEAD))))
        return Together((self.adapters, head)) if self.adapters else head

    def head(self, policy: Policy, users: Sequence[str], generator: torch.Generator) -> UserTokens:
        """A fresh table for these users."""
        if self.user_model == "individual":
            return IndividualTokens(users, self._vectors(policy, 1 + len(users), generator))
        weights = torch.randn(1 + len(users), self.clusters, generator=generator)
        return ClusterTokens(users, weights, self._vectors(policy, self.clusters, generator))

    def _vectors(self, policy: Policy, count: int, generator: torch.Generator) -> Tensor:
        """[count, tokens, width]: embeddings of random tokens of the vocabulary, or uniform in [-.5, .5]."""
        embeddings = policy.embedding.weight.detach().cpu()
        if self.start == "uniform":
            return torch.rand(count, self.tokens, embeddings.shape[1], generator=generator) - 0.5
        return embeddings[torch.randint(len(embeddings), (count, self.tokens), generator=generator)].float()


class Personal:
    """P-DPO: user_weight DPO(the user's soft tokens) + (1 - user_weight) DPO(the generic ones), the mean over pairs.

    `reference` [pairs, 2] are log-probabilities in nats, chosen first.
    """

    def __init__(
        self,
        policy: Policy,
        rows: Sequence[Branches],
        users: Sequence[str],
        reference: Tensor,
        deltas: Deltas,
        beta: float,
        user_weight: float,
    ) -> None:
        self.policy, self.rows, self.users, self.reference = policy, rows, users, reference
        self.deltas, self.beta = deltas, beta
        self.weights = {kind: w for kind, w in (("own", user_weight), ("generic", 1.0 - user_weight)) if w}

    def __call__(self, batch: Indices) -> tuple[Tensor, Mapping[str, Tensor]]:
        some = batch[HEAD]
        rows = [self._row(kind, i) for kind in self.weights for i in some]
        sums = self._sums(rows).view(len(self.weights), -1, 2)
        found = dict(zip(self.weights, margins(sums, self.reference[some].to(sums.device)), strict=True))
        losses = [self.weights[kind] * dpo_loss(m, self.beta).mean() for kind, m in found.items()]
        figures: dict[str, Tensor] = {}
        for kind, m in found.items():
            figures |= {f"{kind}/accuracy": (m > 0).float().mean(), f"{kind}/margin": self.beta * m.detach().mean()}
        return torch.stack(losses).sum(), figures

    def _sums(self, rows: Sequence[Branches]) -> Tensor:
        """log p of every answer of every row in their order; what recurs, as the generic rows do, is read once."""
        unique = shared(rows, max(row.length for row in rows))
        with self.policy.using(self.deltas):
            logp = answer_logprobs(self.policy, unique)
        read = [(row.prompt, answer) for row in unique for answer in row.answers]
        sums = {key: one.sum() for key, one in zip(read, logp, strict=True)}
        return torch.stack([sums[row.prompt, answer] for row in rows for answer in row.answers])

    def _row(self, kind: str, number: int) -> Branches:
        """A pair behind the soft tokens of its user, or of nobody in particular."""
        soft = Soft(HEAD, (self.users[number],) if kind == "own" else ())
        row = self.rows[number]
        return Branches(self.policy.soft_ids(soft) + row.prompt, row.answers)
