"""Streams of further models, whose tokens may be others: what they think of the base's candidates.

Each answer's rows of one model share what is to be read: the guide's tokens that are settled, kept in a cache, and
behind them a tree of the spellings that are still open, read in the same forward pass and then forgotten (see
`policy.covering`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from personalign.contracts import UserError
from personalign.decoding.rows import Answer, GuestRow, order
from personalign.policy.covering import Covering
from personalign.policy.policy import Policy
from personalign.policy.scripts import Ids


@dataclass(slots=True)
class Text:
    """An answer as a further model reads it: `tail` are the base's tokens whose spelling is open."""

    answer: Answer
    covering: Covering
    seen: int = 0
    tail: Ids = ()
    settled: list[int] = field(default_factory=list)  # and not yet in the cache

    def follow(self) -> None:
        """Take in the tokens that are new."""
        for token in self.answer.tokens[self.seen :]:
            tail = (*self.tail, token)
            if self.covering.read(tail):
                sure, self.tail = self.covering.settled(tail)
                self.settled += sure
        self.seen = len(self.answer.tokens)

    def covers(self, candidates: Sequence[int]) -> list[tuple[Ids, ...]]:
        """The spellings of each candidate, behind what is settled."""
        tails = [(*self.tail, token) for token in candidates]
        return [self.covering.covers(tail) if self.covering.read(tail) else () for tail in tails]


@dataclass(slots=True)
class Tree:
    """What stands before the last token of each spelling: node i is read behind node `parent[i]`; 0 is what is
    settled. A step is (node, next token)."""

    nodes: dict[Ids, int] = field(default_factory=lambda: {(): 0})
    parent: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def node(self, ids: Ids) -> int:
        if ids not in self.nodes:
            self.parent.append(self.node(ids[:-1]))
            self.tokens.append(ids[-1])
            self.nodes[ids] = len(self.tokens)
        return self.nodes[ids]

    def steps(self, ids: Ids) -> list[tuple[int, int]]:
        return [(self.node(ids[:i]), token) for i, token in enumerate(ids)]

    def above(self, node: int) -> list[int]:
        """The nodes on the way to this one, itself included, without the root."""
        return [*self.above(self.parent[node - 1]), node] if node else []


class Company:
    """Rows of one further model that entered together, with a cache of their own."""

    def __init__(self, policy: Policy, covering: Covering, rows: Sequence[GuestRow]) -> None:
        self.policy, self.covering = policy, covering
        self.rows = [rows[i] for i in order(rows)]
        self.texts = {answer: Text(answer, covering) for answer in dict.fromkeys(row.answer for row in rows)}
        self.cache = DynamicCache()
        device = policy.device
        self.valid = torch.zeros(len(rows), 0, dtype=torch.bool, device=device)  # which columns of the cache are real
        self.root = torch.zeros(len(rows), policy.embedding.embedding_dim, dtype=policy.dtype, device=device)
        self.fresh = True

    def leave(self) -> None:
        keep = [i for i, row in enumerate(self.rows) if not row.answer.stop]
        if len(keep) < len(self.rows):
            index = torch.tensor(keep, dtype=torch.long, device=self.policy.device)
            self.rows = [self.rows[i] for i in keep]
            self.texts = {row.answer: self.texts[row.answer] for row in self.rows}
            self.valid, self.root = self.valid[index], self.root[index]
            if keep:
                self.cache.batch_select_indices(index)

    def speak(self, candidates: Mapping[Answer, Sequence[int]]) -> list[tuple[Answer, list[float]]]:
        """The weighted log p of each answer's candidates, a row at a time."""
        for text in self.texts.values():
            if not text.answer.stop:
                text.follow()
        covers = {answer: text.covers(candidates[answer]) for answer, text in self.texts.items() if not answer.stop}
        trees = {answer: Tree() for answer in self.texts}
        steps = {answer: [[trees[answer].steps(ids) for ids in some] for some in covers[answer]] for answer in covers}
        states = self._read(trees)
        self.fresh = False
        for text in self.texts.values():
            text.settled = []
        found = []
        for i, row in enumerate(self.rows):
            if row.answer in covers:
                hidden = states[i] if row.head is None else self.policy.heads[row.head](states[i])
                logp = self.policy.logits(hidden).double().log_softmax(-1).cpu()
                found.append((row.answer, [row.weight * value for value in valued(logp, steps[row.answer])]))
        return found

    def _read(self, trees: Mapping[Answer, Tree]) -> list[Tensor]:
        """Feed what is settled, and the trees behind it: each row's states at the root and at every node."""
        settled = [self._settled(row) for row in self.rows]
        nodes = [trees[row.answer] for row in self.rows]
        if not any(settled) and not any(tree.tokens for tree in nodes):
            return [state[None] for state in self.root]
        states = self._forward(*self._laid_out(settled, nodes))
        found = []
        for i, (size, tree) in enumerate(zip(map(len, settled), nodes, strict=True)):
            self.rows[i].answer.fed_guests += size + len(tree.tokens)
            self.root[i] = states[i, size - 1] if size else self.root[i]
            found.append(torch.cat([self.root[i][None], states[i, size : size + len(tree.tokens)]]))
        self._keep([len(ids) for ids in settled], states.shape[1])
        return found

    def _laid_out(self, settled: Sequence[Sequence[int]], nodes: Sequence[Tree]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and their positions [rows, width], and who sees whom of them [rows, width, width]: what is settled
        comes first, and a node sees that and the way to it."""
        width = max(len(read) + len(tree.tokens) for read, tree in zip(settled, nodes, strict=True))
        used = self.valid.sum(1).tolist()
        ids = torch.full((len(self.rows), width), self.policy.pad_id)
        positions = torch.zeros(len(self.rows), width, dtype=torch.long)
        mask = torch.eye(width, dtype=torch.bool).repeat(len(self.rows), 1, 1)
        for i, (read, tree) in enumerate(zip(settled, nodes, strict=True)):
            size, whole = len(read), len(read) + len(tree.tokens)
            ids[i, :whole] = torch.tensor([*read, *tree.tokens])
            mask[i, :size, :size] = torch.ones(size, size, dtype=torch.bool).tril()
            mask[i, size:whole, :size] = True
            ways = [tree.above(node) for node in range(1, len(tree.tokens) + 1)]
            for k, way in enumerate(ways):
                mask[i, size + k, [size + node - 1 for node in way]] = True
            places = [*range(size), *(size + len(way) - 1 for way in ways)]
            positions[i, :whole] = torch.tensor([used[i] + place for place in places])
        self._check(int(positions.max()))
        return ids, positions, mask

    def _check(self, last: int) -> None:
        if last >= self.policy.context:
            raise UserError(
                f"an answer takes more than the {self.policy.context} tokens of the context of {self.policy.label}: "
                "lower sampling.max_new_tokens, or shorten the prompts"
            )

    def _keep(self, sizes: Sequence[int], width: int) -> None:
        """Of the `width` that was fed, what is settled stays in the cache."""
        longest = max(sizes)
        if width > longest:
            self.cache.crop(longest - width)
        kept = torch.arange(longest)[None] < torch.tensor(sizes)[:, None]
        self.valid = torch.cat([self.valid, kept.to(self.valid.device)], 1)

    def _settled(self, row: GuestRow) -> list[int]:
        """What is to be read for good: before everything else the prompt."""
        return [*(row.source.ids if self.fresh else ()), *self.texts[row.answer].settled]

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        device = self.policy.device
        seen = torch.cat([self.valid[:, None].expand(-1, mask.shape[1], -1), mask.to(device)], 2)
        self.policy.routing.by_row([row.source.deltas for row in self.rows])
        return self.policy.hidden(
            **self.policy.inputs(ids),
            attention_mask=seen[:, None],
            position_ids=positions.to(device),
            past_key_values=self.cache,
            use_cache=True,
        )


def valued(logp: Tensor, steps: Sequence[Sequence[Sequence[tuple[int, int]]]]) -> list[float]:
    """log p of each candidate from logp [nodes, vocabulary]: the sum over its spellings of the product over their
    steps. One that cannot be spelled counts as the least likely of the others."""
    found: list[float | None] = []
    for spellings in steps:
        flat = [step for spelling in spellings for step in spelling]
        nodes, tokens = [node for node, _ in flat], [token for _, token in flat]
        parts = logp[nodes, tokens].split_with_sizes([len(spelling) for spelling in spellings]) if flat else ()
        found.append(float(torch.stack([part.sum() for part in parts]).logsumexp(0)) if parts else None)
    least = min((value for value in found if value is not None), default=0.0)
    return [least if value is None else value for value in found]


class Guests:
    """All rows of further models of a batch."""

    def __init__(self, policy: Policy, answers: Sequence[Answer]) -> None:
        rows: dict[str, list[GuestRow]] = {}
        for row in (row for answer in answers for row in answer.guests):
            rows.setdefault(row.model, []).append(row)
        self.companies = [Company(*policy.guests[model], some) for model, some in rows.items()]

    def take_in(self, other: Guests) -> None:
        self.companies += other.companies

    def leave(self) -> None:
        for company in self.companies:
            company.leave()
        self.companies = [company for company in self.companies if company.rows]

    def speak(self, scores: Tensor, seated: Sequence[Answer], candidates: Tensor) -> None:
        """Add their weighted log p to scores [seated, k] of the candidates [seated, k]."""
        if not self.companies:
            return
        asked = dict(zip(seated, candidates.tolist(), strict=True))
        place = {answer: i for i, answer in enumerate(seated)}
        for company in self.companies:
            for answer, values in company.speak(asked):
                scores[place[answer]] += torch.tensor(values, dtype=scores.dtype, device=scores.device)
