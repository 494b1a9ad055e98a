"""One group of answers, token by token: the only place of the framework that loops over tokens.

score(t) = sum_j c_j log p_j(t | prompt_j, prefix) on a candidate set. All streams of all answers of a group are
rows of one forward pass. A log-probability's normaliser is the same for every token, so scores are combined from
logits; and streams that are only read on the k candidates never compute the other logits. Plans that are not
log-linear are combined by `divergence`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from personalign.decoding import rows as layout
from personalign.decoding.blame import blamed
from personalign.decoding.cache import RowCache
from personalign.decoding.divergence import optimum
from personalign.decoding.rows import Answer, Row, Source
from personalign.decoding.sampling import allowed, choose
from personalign.policy.policy import Policy
from personalign.policy.trunk import trunk_of

PREFILL_TOKENS = 2048
"""Padded tokens in one prefill forward: bounds its memory, and few enough that prompts of like length are together."""


class Batch:
    """The rows in flight of one group of answers of one kind (candidates, sampling, interval, combination)."""

    def __init__(self, policy: Policy, answers: list[Answer]) -> None:
        self.policy = policy
        self.answers = answers
        self.plan = answers[0].job.plan
        self.rows: list[Row] = layout.ordered(
            [row for i, answer in enumerate(answers) for row in layout.rows_of(policy, i, answer.job)]
        )
        self.alive = list(range(len(answers)))
        self.trunk = trunk_of(policy, [(_read(row), row.source.deltas) for row in self.rows])

    def run(self) -> list[Answer]:
        """All answers. Raises UserError, with what is to blame, where a score is not a number."""
        with self.trunk.grown(self.policy):
            broken = self._decode()
        if broken is not None:
            adapters = dict.fromkeys(name for row in self.rows for name, _ in row.source.deltas)
            raise blamed(self.policy, broken.job, broken.tokens, list(adapters))
        return self.answers

    def _decode(self) -> Answer | None:
        """Prefill, then token by token until every answer has ended, or one's score is not a number: that one."""
        hidden = self._prefill()
        while True:
            tokens = self._step(hidden)
            scored = zip(self.alive, self.chosen_logprobs, strict=True)
            if broken := [self.answers[a] for a, logprob in scored if not math.isfinite(logprob)]:
                return broken[0]
            self._note(tokens)
            if not self.alive:
                return None
            self._leave()
            hidden = self._forward()

    def _prefill(self) -> Tensor:
        """Feed every distinct source once, then spread cache and last hidden states over the rows."""
        parts = layout.parts(list(dict.fromkeys(row.source for row in self.rows)), PREFILL_TOKENS)
        sources = {source: i for i, source in enumerate(source for part in parts for source in part)}
        texts = {ids: i for i, ids in enumerate(dict.fromkeys(source.ids for source in sources))}
        width = max(map(len, texts))
        layers = self.policy.model.config.get_text_config().num_hidden_layers
        capacity = width + self.plan.sampling.max_new_tokens
        self.cache = RowCache(layers, len(sources), capacity, self.trunk.depth, len(texts))
        states = torch.cat([self._prefill_part(part, sources[part[0]], texts[part[0].ids], width) for part in parts])
        rows = self._index(sources[row.source] for row in self.rows)
        self.cache.select(rows, self._index(texts[ids] for _, ids in dict.fromkeys(map(_read, self.rows))), 0)
        self.offsets = torch.tensor([width - len(row.source.ids) for row in self.rows])
        self._arrange()
        return states[rows]

    def _prefill_part(self, sources: list[Source], row: int, text: int, width: int) -> Tensor:
        """Fill the cache's rows from `row`, its trunk's from `text` on, to column `width`; last hidden [sources, .]."""
        ids, offsets = layout.padded(sources, self.policy.pad_id)
        longest, device = ids.shape[1], self.policy.device
        texts = {source.ids for source in sources}
        self.cache.window(slice(row, row + len(sources)), slice(text, text + len(texts)), width - longest)
        self.policy.routing.by_row([source.deltas for source in sources])
        self.trunk.arrange([source.ids for source in sources], device)
        padded = bool((offsets > 0).any())
        states = self.policy.hidden(
            **self.policy.inputs(ids),
            attention_mask=layout.prefill_mask(offsets, longest).to(device) if padded else None,
            position_ids=(torch.arange(longest)[None] - offsets[:, None]).clamp(min=0).to(device),
            past_key_values=self.cache,
            use_cache=True,
        )
        return states[:, -1]

    def _index(self, numbers: Iterable[int]) -> Tensor:
        return torch.tensor(list(numbers), dtype=torch.long, device=self.policy.device)

    def _arrange(self) -> None:
        """What stays the same until rows leave: routing, masks, weights, and who is read where."""
        device = self.policy.device
        place = {answer: i for i, answer in enumerate(self.alive)}
        self.policy.routing.by_row([row.source.deltas for row in self.rows])
        self.trunk.arrange(list(map(_read, self.rows)), device)
        self.owner = self._index(place[row.answer] for row in self.rows)
        self.weights = torch.tensor([row.weight for row in self.rows], device=device)
        reads = {place[row.answer]: i for i, row in enumerate(self.rows) if row.read}
        self.reads = self._index(reads[i] for i in range(len(self.alive)))
        self.guides = self._index(i for i, row in enumerate(self.rows) if not row.read)
        heads = {row.head for row in self.rows if row.head is not None}
        self.heads = {h: [i for i, row in enumerate(self.rows) if row.head == h] for h in heads}
        mask = layout.step_mask(self.offsets, self.cache.capacity, self.policy.dtype)
        self.mask = mask.to(device) if mask is not None else None
        self.positions = (self.cache.get_seq_length() - self.offsets).to(device)
        self.last = torch.zeros(len(self.rows), dtype=torch.long, device=device)

    def _forward(self) -> Tensor:
        """Feed each row its answer's newest token; last hidden states [rows, width]."""
        stop = self.cache.get_seq_length() + 1
        newest = torch.tensor([self.answers[a].tokens[-1] for a in self.alive], device=self.policy.device)
        states = self.policy.hidden(
            input_ids=newest[self.owner][:, None],
            attention_mask=None if self.mask is None else self.mask[..., :stop],
            position_ids=self.positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions += 1
        return states[:, -1]

    def _step(self, hidden: Tensor) -> Tensor:
        """hidden [rows, width] -> the next token of every answer [alive]."""
        for head, rows in self.heads.items():
            hidden[rows] = self.policy.heads[head](hidden[rows])
        scores, candidates = self._scores(hidden)
        generators = [self.answers[a].generator for a in self.alive]
        index = choose(scores, self.plan.sampling, generators)
        logprobs = scores.log_softmax(dim=-1).gather(1, index[:, None])[:, 0]
        self.chosen_logprobs: list[float] = logprobs.tolist()
        return index if candidates is None else candidates.gather(1, index[:, None])[:, 0]

    def _scores(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Combined scores [alive, candidates], with the candidates' token ids or None for the whole vocabulary."""
        rule = self.plan.candidates
        read = self.policy.logits(hidden[self.reads])
        speaking = len(self.answers[self.alive[0]].tokens) % self.plan.score_every == 0
        if speaking and self.plan.combine != "log_linear":
            return self._divergent(hidden, read)
        if rule.rule == "top_k":
            best, candidates = read.topk(min(rule.k, read.shape[-1]), dim=-1)
            if not speaking:
                return best, candidates
            scores = best * self.weights[self.reads, None]
            return scores.index_add_(0, self.owner[self.guides], self._guided(hidden, candidates)), candidates
        scores = read * self.weights[self.reads, None] if speaking else read
        if speaking and len(self.guides):
            guided = self.policy.logits(hidden[self.guides]) * self.weights[self.guides, None]
            scores = scores.index_add(0, self.owner[self.guides], guided)
        if rule.rule == "plausible":
            scores = scores.masked_fill(~allowed(read, rule), float("-inf"))
        return scores, None

    def _divergent(self, hidden: Tensor, read: Tensor) -> tuple[Tensor, Tensor | None]:
        """`_scores` of a plan that is not log-linear, from the candidates' stream's logits `read`."""
        rule, owners = self.plan.candidates, self.owner[self.guides]
        candidates: Tensor | None = None
        if rule.rule == "top_k":
            read, candidates = read.topk(min(rule.k, read.shape[-1]), dim=-1)
        elif rule.rule == "plausible":
            read = read.masked_fill(~allowed(read, rule), float("-inf"))
        if not len(self.guides):
            return read, candidates
        states = hidden[self.guides]
        guided = self.policy.logits(states) if candidates is None else self.policy.logits_at(states, candidates[owners])
        return optimum(self.plan.combine, read, guided, owners, self.weights[self.guides]), candidates

    def _guided(self, hidden: Tensor, candidates: Tensor) -> Tensor:
        """Weighted logits of the guide rows on their answers' candidates [guides, k]."""
        owners = self.owner[self.guides]
        return self.policy.logits_at(hidden[self.guides], candidates[owners]) * self.weights[self.guides, None]

    def _note(self, tokens: Tensor) -> None:
        """Write the chosen tokens down and see who has ended."""
        limit = self.plan.sampling.max_new_tokens
        for a, token, logprob in zip(self.alive, tokens.tolist(), self.chosen_logprobs, strict=True):
            answer = self.answers[a]
            answer.tokens.append(token)
            answer.logprobs.append(logprob)
            ended = "length" if len(answer.tokens) == limit else ""
            answer.stop = "eos" if token in self.policy.stop_ids else ended
        self.alive = [a for a in self.alive if not self.answers[a].stop]

    def _leave(self) -> None:
        """Take the rows of ended answers out of the batch, and the columns that only they needed."""
        keep = [i for i, row in enumerate(self.rows) if not self.answers[row.answer].stop]
        if len(keep) == len(self.rows):
            return
        read = dict.fromkeys(map(_read, self.rows))
        trunk = self._index(i for i, (answer, _) in enumerate(read) if not self.answers[answer].stop)
        self.rows = [self.rows[i] for i in keep]
        self.offsets = self.offsets[keep]
        start = int(self.offsets.min())
        self.offsets = self.offsets - start
        self.cache.select(self._index(keep), trunk, start)
        self._arrange()


def _read(row: Row) -> tuple[int, tuple[int, ...]]:
    """What a row reads: rows of one answer with one prompt read the same tokens."""
    return row.answer, row.source.ids
