"""The answers in flight, token by token: the only place of the framework that loops over tokens.

score(t) = sum_j c_j log p_j(t | prompt_j, prefix) on a candidate set. All streams of all answers are rows of one
forward pass. A log-probability's normaliser is the same for every token, so scores are combined from logits; and
streams that are only read on the k candidates never compute the other logits. Plans that are not log-linear are
combined by `divergence`; those with an echo need every stream on the whole vocabulary, of which each answer keeps a
row; where values are added, candidates are read as `leaves`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from personalign.decoding import rows as layout
from personalign.decoding.blame import blamed
from personalign.decoding.divergence import optimum
from personalign.decoding.guests import Guests
from personalign.decoding.leaves import Leaves
from personalign.decoding.prefill import prefill
from personalign.decoding.prefixes import Prefixes
from personalign.decoding.rows import Answer, Row, Text
from personalign.decoding.sampling import allowed, choose
from personalign.policy.policy import Policy
from personalign.policy.trunk import Trunk, trunk_of


class Batch:
    """The rows of answers of one kind (see `rows.kind`), all filled up to the same column of one cache.

    Answers leave some time after they are whole, until when their rows go on idly, and others may join. It leaves the
    policy's routing as it last needed it.
    """

    def __init__(self, policy: Policy, answers: Sequence[Answer], prefixes: Prefixes, depth: int | None = None) -> None:
        """`depth` is the trunk's; without it the trunk is as deep as the rows allow."""
        self.policy, self.prefixes = policy, prefixes
        self.alive = list(answers)
        self.plan = answers[0].job.plan
        self.guests = Guests(policy, answers)
        rows = _rows(answers)
        self.rows = [rows[i] for i in layout.order(rows)]
        self.trunk = Trunk(_depth(policy, rows) if depth is None else depth)

    def start(self) -> list[Answer]:
        """Prefill, and the first token of every answer. Returns those that it ended."""
        self.cache, hidden = prefill(self.policy, self.rows, self.trunk, self._room(), self.prefixes)
        self.leaves = Leaves(hidden)
        self._arrange()
        return self._note(self._step(hidden))

    def go_on(self) -> list[Answer]:
        """One more token for every answer. Returns those that it ended."""
        hidden = self._forward() if self.leaves.chosen is None else self.leaves.chosen
        if self.plan.valued:
            self.leaves.sums += hidden
        return self._note(self._step(hidden))

    def idle(self) -> float:
        """The share of rows whose answers have ended."""
        return sum(bool(row.answer.stop) for row in self.rows) / len(self.rows)

    def full(self) -> bool:
        """Whether there is no room for a further token: then the answer with the longest rows has ended."""
        return self.cache.get_seq_length() == self.cache.capacity

    def leave(self) -> None:
        """Take the rows of ended answers out of the batch, and the columns that only they needed."""
        keep = [i for i, row in enumerate(self.rows) if not row.answer.stop]
        if len(keep) == len(self.rows):
            return
        self.guests.leave()
        trunk = self._index(i for i, (answer, _) in enumerate(self._texts()) if not answer.stop)
        self.rows = [self.rows[i] for i in keep]
        start = self.cache.get_seq_length() - max(row.used for row in self.rows)
        self.cache.select(self._index(keep), trunk, start, self._room())
        self.leaves.select(self._index(keep))
        self._arrange()

    def join(self, answers: Sequence[Answer]) -> list[Answer]:
        """Prefill answers in a cache of their own, and take them in with their first token. Returns those that it
        ended. Only where nobody has still to `leave`."""
        depth = min(self.trunk.depth, _depth(self.policy, [*self.rows, *_rows(answers)]))
        entering = Batch(self.policy, answers, self.prefixes, depth)
        ended = entering.start()
        if entering.alive:
            entering.leave()
            self._take_in(entering)
        return ended

    def _take_in(self, other: Batch) -> None:
        self.guests.take_in(other.guests)
        rows, texts = [*self.rows, *other.rows], [*self._texts(), *other._texts()]
        order = layout.order(rows)
        self.rows, self.alive = [rows[i] for i in order], self.alive + other.alive
        self.cache.cut(other.trunk.depth, self.trunk.of)
        self.trunk = other.trunk
        place = {text: i for i, text in enumerate(texts)}
        trunk = self._index(place[text] for text in self._texts())
        self.cache.join(other.cache, self._index(order), trunk, self._room())
        self.leaves.join(other.leaves, self._index(order))
        self._arrange()

    def _texts(self) -> list[tuple[Answer, Text]]:
        """What is read, each once: the rows of the trunk."""
        return list(dict.fromkeys(row.reads for row in self.rows))

    def _adapters(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name, _ in row.source.deltas))

    def _room(self) -> int:
        """Columns of the cache that are kept behind the filled ones."""
        return layout.columns(self.rows) - max(row.used for row in self.rows)

    def _index(self, numbers: Iterable[int]) -> Tensor:
        return torch.tensor(list(numbers), dtype=torch.long, device=self.policy.device)

    def _arrange(self) -> None:
        """What stays the same until rows leave or join: routing, masks, weights, and who is read where."""
        device = self.policy.device
        self.seated = self.alive
        place = {answer: i for i, answer in enumerate(self.seated)}
        self.policy.routing.by_row([row.source.deltas for row in self.rows])
        self.slices = self.policy.routing.slices
        self.trunk.arrange([row.reads for row in self.rows], device)
        self.owner = self._index(place[row.answer] for row in self.rows)
        self.weights = torch.tensor([row.weight for row in self.rows], device=device)
        reads = {place[row.answer]: i for i, row in enumerate(self.rows) if row.read}
        self.reads = self._index(reads[i] for i in range(len(self.seated)))
        self.guides = self._index(i for i, row in enumerate(self.rows) if not row.read and row.weight)
        self.guided, self.strengths = self.owner[self.guides], self.weights[self.guides, None]
        self.shares = torch.zeros(len(self.seated), device=device).index_add_(0, self.owner, self.weights)
        self.leaves.arrange(self.rows, device)
        heads = {row.head for row in self.rows if row.head is not None}
        self.heads = {h: [i for i, row in enumerate(self.rows) if row.head == h] for h in heads}
        used = torch.tensor([row.used for row in self.rows])
        mask = layout.step_mask(self.cache.get_seq_length() - used, self.cache.capacity, self.policy.dtype)
        self.mask = mask.to(device) if mask is not None else None
        self.positions = used.to(device)

    def _forward(self) -> Tensor:
        """Feed each row its answer's newest token; last hidden states [rows, width]."""
        stop = self.cache.get_seq_length() + 1
        newest = self._index(answer.tokens[-1] for answer in self.seated)
        return self._feed(newest[:, None], None if self.mask is None else self.mask[..., :stop])[:, -1]

    def _feed(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Feed each row tokens of its answer [seated, time], all at the next position; states [rows, time, width]."""
        self.policy.routing.slices = self.slices
        alike = self.mask is None
        positions = self.positions[:1] if alike else self.positions
        with self.trunk.grown(self.policy, alike):
            states = self.policy.hidden(
                input_ids=tokens[self.owner],
                attention_mask=mask,
                position_ids=positions[:, None].expand(-1, tokens.shape[1]),
                past_key_values=self.cache,
                use_cache=True,
            )
        self.positions += 1
        return states

    def _step(self, hidden: Tensor) -> Tensor:
        """hidden [rows, width] -> the next token of every answer [seated]."""
        for head, rows in self.heads.items():
            hidden[rows] = self.policy.heads[head](hidden[rows])
        self.odd = torch.zeros(len(self.seated), device=hidden.device)
        scores, candidates = self._scores(hidden)
        states = None
        if candidates is not None and self.plan.valued and self._speaking():
            mask = layout.leaf_mask(self.mask, self.cache.get_seq_length(), candidates.shape[1], hidden)
            states = self._feed(candidates, mask)
            scores.index_add_(0, self.owner, self.leaves.rated(self.policy, states))
        if candidates is not None:
            self._heed(scores)
        index = choose(scores, self.plan.sampling, [answer.generator for answer in self.seated])
        if self.plan.valued:
            self._keep(states, index[self.owner])
        logprobs = scores.log_softmax(dim=-1).gather(1, index[:, None])[:, 0] + self.odd
        self.chosen_logprobs: list[float] = logprobs.tolist()
        return index if candidates is None else candidates.gather(1, index[:, None])[:, 0]

    def _keep(self, states: Tensor | None, leaf: Tensor) -> None:
        """Of the candidates that rows have read, if they have, only the one `leaf` [rows] of each was read."""
        self.leaves.keep(states, leaf)
        if states is not None:
            self.cache.keep(leaf, leaf[self.trunk.lead], states.shape[1])

    def _speaking(self) -> bool:
        """Whether all streams speak at the next token."""
        return len(self.alive[0].tokens) % self.plan.score_every == 0

    def _scores(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Combined scores [seated, candidates], with the candidates' token ids or None for the whole vocabulary."""
        rule, speaking = self.plan.candidates, self._speaking()
        if speaking and rule.rule == "all" and self.plan.combine == "log_linear" and self.plan.echo == 0.0:
            return self._summed(hidden), None
        read = self._heed(self.policy.logits(hidden[self.reads]))
        if speaking and self.plan.combine != "log_linear":
            return self._divergent(hidden, read)
        echoed = speaking and self.plan.echo != 0.0
        if rule.rule == "top_k" and not echoed:
            best, candidates = read.topk(min(rule.k, read.shape[-1]), dim=-1)
            if not speaking:
                return best, candidates
            scores = best * self.weights[self.reads, None]
            scores.index_add_(0, self.guided, self._guided(hidden, candidates))
            self.guests.speak(scores, self.seated, candidates)
            return scores, candidates
        scores = self._summed(hidden) if speaking else read
        if echoed:
            scores = self._echoed(scores, read)
        if rule.rule == "top_k":
            candidates = read.topk(min(rule.k, read.shape[-1]), dim=-1).indices
            return scores.gather(1, candidates), candidates
        if rule.rule == "plausible":
            scores = scores.masked_fill(~allowed(read, rule), float("-inf"))
        return scores, None

    def _summed(self, hidden: Tensor) -> Tensor:
        """The weighted sums of the rows' logits [seated, vocabulary].

        The head is linear, and the most that is read at a token: it reads the weighted sums of the states once.
        """
        weighted = hidden * self.weights[:, None]  # float32 at least
        states = weighted.new_zeros(len(self.seated), hidden.shape[-1]).index_add_(0, self.owner, weighted)
        return self._heed(self.policy.logits(states.to(hidden.dtype), self.shares))

    def _heed(self, scores: Tensor, owner: Tensor | None = None) -> Tensor:
        """The same scores [rows, tokens], of all answers in turn or of each row's `owner`; one that is -inf or no
        number, of whatever token, makes its answer's `odd` no number. Infinity becomes one without help."""
        least = scores.amin(dim=-1)
        odd = (least - least).to(self.odd.dtype)
        self.odd = self.odd + odd if owner is None else self.odd.index_add(0, owner, odd)
        return scores

    def _echoed(self, scores: Tensor, read: Tensor) -> Tensor:
        """Scores [seated, vocabulary] and what moved those of the step before, `echo` times; each answer keeps for the
        next step what moves it now."""
        moved = scores - read
        before = [
            torch.zeros_like(now) if answer.moved is None else answer.moved
            for answer, now in zip(self.seated, moved, strict=True)
        ]
        for answer, now in zip(self.seated, moved, strict=True):
            answer.moved = now
        return scores + self.plan.echo * torch.stack(before)

    def _divergent(self, hidden: Tensor, read: Tensor) -> tuple[Tensor, Tensor | None]:
        """`_scores` of a plan that is not log-linear, from the candidates' stream's logits `read`."""
        rule = self.plan.candidates
        candidates: Tensor | None = None
        if rule.rule == "top_k":
            read, candidates = read.topk(min(rule.k, read.shape[-1]), dim=-1)
        elif rule.rule == "plausible":
            read = read.masked_fill(~allowed(read, rule), float("-inf"))
        if not len(self.guides):
            return read, candidates
        states = hidden[self.guides]
        if candidates is None:
            guided = self.policy.logits(states)
        else:
            guided = self.policy.logits_at(states, candidates[self.guided])
        self._heed(guided, self.guided)
        return optimum(self.plan.combine, read, guided, self.guided, self.strengths[:, 0]), candidates

    def _guided(self, hidden: Tensor, candidates: Tensor) -> Tensor:
        """Weighted logits of the guide rows on their answers' candidates [guides, k]."""
        return self.policy.logits_at(hidden[self.guides], candidates[self.guided]) * self.strengths

    def _note(self, tokens: Tensor) -> list[Answer]:
        """Write the chosen tokens down; the answers that they ended are no longer alive, and returned.

        Raises UserError, with what is to blame, where a score was not a number, be it that of another token.
        """
        before = self.alive
        for answer, token, logprob in zip(self.seated, tokens.tolist(), self.chosen_logprobs, strict=True):
            if not answer.stop:
                if not math.isfinite(logprob):
                    raise blamed(self.policy, answer.job, answer.tokens, self._adapters())
                answer.tokens.append(token)
                answer.ahead = self.leaves.chosen is not None
                answer.dropped += self.leaves.dropped
                answer.logprobs.append(logprob)
                ended = "length" if len(answer.tokens) == answer.limit else ""
                answer.stop = "eos" if token in self.policy.stop_ids else ended
        self.alive = [answer for answer in before if not answer.stop]
        return [answer for answer in before if answer.stop]


def _rows(answers: Sequence[Answer]) -> list[Row]:
    return [row for answer in answers for row in answer.rows]


def _depth(policy: Policy, rows: Sequence[Row]) -> int:
    return trunk_of(policy, [(row.reads, row.source.deltas) for row in rows]).depth
