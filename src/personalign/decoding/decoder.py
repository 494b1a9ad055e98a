"""The one decoder: every method of the framework is a plan, and this is the only place that loops over tokens.

score(t) = sum_j c_j log p_j(t | prompt_j, prefix) on a candidate set. All streams of all answers of a group are
rows of one forward pass. A log-probability's normaliser is the same for every token, so scores are combined from
logits; and streams that are only read on the k candidates never compute the other logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from personalign.decoding import rows as layout
from personalign.decoding.cache import RowCache
from personalign.decoding.rows import Answer, Job, Row, Source
from personalign.decoding.sampling import allowed, choose
from personalign.policy.policy import Policy
from personalign.runtime.seeds import derive
from personalign.types import Cost, Response

PREFILL_TOKENS = 2048
"""Padded tokens in one prefill forward: bounds its memory, and few enough that prompts of like length are together."""

Done = Callable[[list[Response]], None]


class Decoder:
    """Answers jobs in groups. Groups depend on the list of jobs alone, so that a run that is resumed after any
    group, with what is missing rerun whole, gives what an uninterrupted run gives.

    Args:
        policy: what the streams name; its routing belongs to the decoder while it runs.
        batch_size: answers per group.
    """

    def __init__(self, policy: Policy, batch_size: int) -> None:
        self.policy = policy
        self.batch_size = batch_size

    def groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Jobs of one kind (candidates, sampling, interval) together, in their order, `batch_size` answers each.

        Jobs with an equal greedy plan are one answer: they share a group and are decoded once.
        """
        kinds: dict[object, dict[object, list[Job]]] = {}
        for job in jobs:
            plan = job.plan.simplified()
            kind = (replace(plan.candidates, stream=0), replace(plan.sampling, seed=0), plan.score_every)
            same = plan if plan.sampling.temperature == 0.0 else job.request
            kinds.setdefault(kind, {}).setdefault(same, []).append(replace(job, plan=plan))
        return [group for alike in kinds.values() for group in self._split(list(alike.values()))]

    def _split(self, answers: list[list[Job]]) -> Iterator[list[Job]]:
        size = max(1, self.batch_size // answers[0][0].plan.sampling.n)
        for start in range(0, len(answers), size):
            yield [job for same in answers[start : start + size] for job in same]

    def generate(self, jobs: Sequence[Job], on_group: Done | None = None) -> list[Response]:
        """All answers in the order of the groups; `on_group` sees each group's answers as soon as they are whole."""
        answers: list[Response] = []
        for group in self.groups(jobs):
            answers += self.answer(group)
            if on_group:
                on_group(answers[-sum(job.plan.sampling.n for job in group) :])
        return answers

    @torch.inference_mode()
    def answer(self, group: Sequence[Job]) -> list[Response]:
        """The answers of one group: jobs in order, samples in order. Equal greedy plans are decoded once."""
        started = time.perf_counter()
        greedy = group[0].plan.sampling.temperature == 0.0
        leader = {job.plan: job for job in reversed(group)} if greedy else {}
        unique = [job for job in group if leader.get(job.plan, job) is job]
        slices = self.policy.routing.slices
        try:
            made = _Batch(self.policy, [self._start(job, s) for job in unique for s in self._samples(job)]).run()
        finally:
            self.policy.routing.slices = slices
        seconds = (time.perf_counter() - started) / max(1, sum(len(a.tokens) for a in made))
        by_plan = {(id(a.job), a.sample): a for a in made}
        found = [(job, s, leader.get(job.plan, job)) for job in group for s in range(job.plan.sampling.n)]
        return [self._response(job, s, by_plan[id(lead), 0 if greedy else s], seconds) for job, s, lead in found]

    def _samples(self, job: Job) -> range:
        return range(1 if job.plan.sampling.temperature == 0.0 else job.plan.sampling.n)

    def _start(self, job: Job, sample: int) -> Answer:
        seed = derive(job.plan.sampling.seed, job.request, str(sample))
        return Answer(job, sample, torch.Generator().manual_seed(seed), 0)

    def _response(self, job: Job, sample: int, answer: Answer, seconds: float) -> Response:
        new = len(answer.tokens)
        text = self.policy.decode(answer.tokens)
        fed = sum(len(layout.prompt_ids(self.policy, s)) + max(0, new - 1) for s in job.plan.streams)
        return Response(
            request=job.request,
            text=text,
            sample=sample,
            tokens=tuple(answer.tokens),
            logprobs=tuple(answer.logprobs),
            stop="eos" if answer.stop == "eos" else "length",
            cost=Cost(fed, new, seconds * new),
        )


class _Batch:
    """The rows in flight of one group of answers of one kind."""

    def __init__(self, policy: Policy, answers: list[Answer]) -> None:
        self.policy = policy
        self.answers = answers
        self.plan = answers[0].job.plan
        self.rows: list[Row] = layout.ordered(
            [row for i, answer in enumerate(answers) for row in layout.rows_of(policy, i, answer.job)]
        )
        self.alive = list(range(len(answers)))

    def run(self) -> list[Answer]:
        """Prefill, then token by token until every answer has ended."""
        hidden = self._prefill()
        while True:
            tokens = self._step(hidden)
            self._note(tokens)
            if not self.alive:
                return self.answers
            self._leave()
            hidden = self._forward()

    def _prefill(self) -> Tensor:
        """Feed every distinct source once, then spread cache and last hidden states over the rows."""
        parts = layout.parts(list(dict.fromkeys(row.source for row in self.rows)), PREFILL_TOKENS)
        sources = [source for part in parts for source in part]
        width = max(len(source.ids) for source in sources)
        layers = self.policy.model.config.get_text_config().num_hidden_layers
        self.cache = RowCache(layers, len(sources), width + self.plan.sampling.max_new_tokens)
        states = torch.cat([self._prefill_part(part, sources.index(part[0]), width) for part in parts])
        number = {source: i for i, source in enumerate(sources)}
        index = torch.tensor([number[row.source] for row in self.rows], device=self.policy.device)
        if index.tolist() == list(range(len(sources))):
            self.cache.whole()
        else:
            self.cache.select(index, 0)
        self.offsets = torch.tensor([width - len(row.source.ids) for row in self.rows])
        self._arrange()
        return states[index]

    def _prefill_part(self, sources: list[Source], row: int, width: int) -> Tensor:
        """The cache's rows from `row` on, up to column `width`; last hidden states [sources, width]."""
        ids, offsets = layout.padded(sources, self.policy.pad_id)
        longest, device = ids.shape[1], self.policy.device
        self.cache.window(row, row + len(sources), width - longest)
        self.policy.routing.by_row([source.deltas for source in sources])
        padded = bool((offsets > 0).any())
        states = self.policy.hidden(
            input_ids=ids.to(device),
            attention_mask=layout.prefill_mask(offsets, longest).to(device) if padded else None,
            position_ids=(torch.arange(longest)[None] - offsets[:, None]).clamp(min=0).to(device),
            past_key_values=self.cache,
            use_cache=True,
        )
        return states[:, -1]

    def _arrange(self) -> None:
        """What stays the same until rows leave: routing, masks, weights, and who is read where."""
        device = self.policy.device
        place = {answer: i for i, answer in enumerate(self.alive)}
        self.policy.routing.by_row([row.source.deltas for row in self.rows])
        self.owner = torch.tensor([place[row.answer] for row in self.rows], device=device)
        self.weights = torch.tensor([row.weight for row in self.rows], device=device)
        reads = {place[row.answer]: i for i, row in enumerate(self.rows) if row.read}
        self.reads = torch.tensor([reads[i] for i in range(len(self.alive))], device=device)
        self.guides = torch.tensor([i for i, row in enumerate(self.rows) if not row.read], device=device).long()
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
        self.rows = [self.rows[i] for i in keep]
        self.offsets = self.offsets[keep]
        start = int(self.offsets.min())
        self.offsets = self.offsets - start
        self.cache.select(torch.tensor(keep, device=self.policy.device), start)
        self._arrange()
