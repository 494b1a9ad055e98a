"""The parts of one composition, assembled: what a user's request meets on its way to a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, Literal, cast

from omegaconf import DictConfig, OmegaConf

from personalign.budget import distinct, within
from personalign.composition.build import build, build_many
from personalign.composition.validate import has_lessons
from personalign.contracts import (
    Belief,
    Boundary,
    Data,
    Evaluation,
    Feedback,
    Generation,
    Guide,
    Memory,
    Part,
    Query,
    Reward,
    Stage,
    UserError,
)
from personalign.decoding.decoder import Decoder
from personalign.decoding.remote import RemoteDecoder
from personalign.decoding.rows import Job
from personalign.plans import Chat, Plan, PolicySpec, Sampling, Stream
from personalign.policy.loaded import load_policy
from personalign.policy.loading import Remote
from personalign.policy.policy import Policy
from personalign.types import Event, Messages, Request, Response, Score, UserState


class System:
    """Data, memory, generation, rewards, alignment, boundary and policy of one composition.

    `guide` is what the system believes and sees recalled states alone; `truth` is for labels and evaluation;
    `universal` scores the values that hold for everyone, for the boundary and for evaluation.
    """

    def __init__(self, cfg: DictConfig, policy: Policy | None = None) -> None:
        self.cfg = cfg
        self.sampling = Sampling(**cfg.sampling, seed=cfg.seed)
        self.data: Data = build(cfg.data)
        self.memory: list[Memory] = build_many(cfg.memory)
        self.generation: Generation = build(cfg.generation)
        self.guide: Reward | None = build(cfg.guide)
        self.truth: Reward | None = build(cfg.truth)
        self.universal: Reward | None = build(cfg.universal)
        self.stages: dict[str, Stage] = {name: build(node) for name, node in cfg.alignment.items()}
        self.boundary: Boundary = build(cfg.boundary)
        self.feedback: Feedback = build(cfg.feedback)
        self.query: Query | None = build(cfg.query)
        self.evaluation: Evaluation = build(cfg.evaluation)
        self._policy = policy
        model = build(cfg.model)
        self.remote = model.endpoint if isinstance(model, Remote) else None  # who answers where there is no policy
        self._states: dict[tuple[str, float], UserState] = {}  # by the request's id and time
        self.round = 0  # of feedback: how often users have been asked
        self.opened: dict[str, float] = {}  # when those who are asked were asked first
        self.clock: dict[str, float] = {}  # when they act next

    @property
    def policy(self) -> Policy:
        """Loaded when something first needs it. Raises UserError where the model is elsewhere."""
        if self.remote is not None:
            raise UserError("the weights of model=endpoint are elsewhere: choose a model that is here (model=hf)")
        if self._policy is None:
            self._policy = load_policy(self.cfg)
        return self._policy

    @property
    def reader(self) -> Policy | None:
        """The policy for parts that read one; None where the model is elsewhere."""
        return None if self.remote is not None else self.policy

    def reset(self) -> None:
        """Back to the base, before training."""
        if self.reader is not None:
            self.reader.reset()

    def _spec(self, user: str) -> PolicySpec:
        return PolicySpec() if self.reader is None else self.reader.for_user(user)

    def prepare(self) -> None:
        """Tie the parts together and let memory take in every user's history."""
        self.data.bind(self.truth, self.sample)
        self.data.require(self._needs())
        self.feedback.bind(self.data, self.truth)
        for user in self.data.users():
            self.observe(self.data.events(user))

    def observe(self, events: Sequence[Event]) -> None:
        """Let memory take in what a user did, and recall afresh."""
        for event in events:
            for memory in self.memory:
                memory.observe(event)
        self._states.clear()

    def _needs(self) -> list[str]:
        """What the chosen parts need of each other, for data whose files may lack what they could hold; stages whose
        lessons are elsewhere need nothing here."""
        tree = cast(dict[str, Any], OmegaConf.to_container(self.cfg, resolve=True))
        taught = self.cfg.source is not None or has_lessons(tree)
        parts: list[Part] = [
            *self.memory,
            self.generation,
            *(() if taught else self.stages.values()),
            self.boundary,
            self.feedback,
            self.evaluation,
        ]
        return sorted({need for part in parts for need in part.needs})

    def learned(self) -> None:
        """When the policy is new or has changed: recall afresh, and let the rewards read it."""
        self._states.clear()
        for reward in (self.guide, self.truth, self.universal):
            if reward is not None:
                reward.bind(self.reader, self.plan)

    def recall(self, requests: Sequence[Request]) -> None:
        """Recall for many requests at once what `state` then gives: a memory that runs a network batches them."""
        asked = list({_key(r): r for r in requests if _key(r) not in self._states}.values())
        if asked:
            coming = [self.now(request) for request in asked]
            reader = None if self.reader is None else self.reader.learner
            recalled = [memory.recall_all(coming, reader) for memory in self.memory]
            for i, request in enumerate(asked):
                self._states[_key(request)] = self._merged([states[i] for states in recalled])

    def recalled(self, requests: Sequence[Request]) -> list[UserState]:
        """The `state` of many requests."""
        self.recall(requests)
        return [self._states[_key(request)] for request in requests]

    def state(self, request: Request) -> UserState:
        """What memory recalls for a request, its members merged in their order, each event once, within the budget if
        there is one."""
        return self.recalled([request])[0]

    def _merged(self, recalled: list[UserState]) -> UserState:
        recalled = distinct(recalled)
        if self.cfg.memory_budget is not None:
            recalled = within(recalled, self.cfg.memory_budget, self.policy.tokens)
        return reduce(UserState.merged, recalled, UserState())

    def now(self, request: Request) -> Request:
        """When a request of a user who has been asked is made: a held-out one after all that they said, one to train on
        at its own time, since what they said later holds its answer; without a time it is older than every question."""
        if request.user not in self.clock:
            return request
        if request.split == "train":
            return replace(request, time=self.opened[request.user]) if math.isinf(request.time) else request
        return replace(request, time=max(request.time, self.clock[request.user]))

    def belief(self, request: Request, texts: Sequence[str]) -> Belief:
        """What memory, which provides `state.posterior`, believes of the user, and how it rates the texts."""
        beliefs = [memory.belief(self.now(request), texts) for memory in self.memory]
        return next(belief for belief in reversed(beliefs) if belief is not None)

    def true_state(self, request: Request) -> UserState | None:
        """The user's true state in this round, for labels and evaluation; None where nobody knows it."""
        told = self.feedback.truth(request, self.round) if self.round else None
        return self.data.truth(request) if told is None else told

    def values(self, asked: Sequence[tuple[Request, Sequence[str]]]) -> list[list[Score]] | None:
        """The universal values of texts, which are the same whoever asks; None where nothing scores them."""
        if self.universal is None:
            return None
        return self.universal.score_all([(request, UserState(), texts) for request, texts in asked])

    def guidance(self) -> Guide | None:
        """The guide for a stage that learns from it; None where there is none."""
        guide = self.guide
        if guide is None:
            return None

        def score(asked: Sequence[tuple[Request, Sequence[str]]]) -> list[list[Score]]:
            return guide.score_all([(request, self.state(request), texts) for request, texts in asked])

        def content(requests: Sequence[Request]) -> object:
            settings = OmegaConf.to_container(self.cfg.guide, resolve=True)
            return [settings, [guide.content(request, self.state(request)) for request in requests]]

        return Guide(score, content)

    def render(
        self,
        request: Request,
        targets: Mapping[str, float] | None = None,
        draft: str | None = None,
        equal: Sequence[str] = (),
    ) -> Messages:
        """The prompt of a request (see `contracts.Render`)."""
        if draft is not None and equal:
            return self.generation.equalisation(request, draft, equal)
        state = self.state(request)
        if draft is not None:
            return self.generation.correction(request, state, draft)
        return self.generation.render(request, state if targets is None else replace(state, targets=targets))

    def plan(self, request: Request) -> Plan:
        """The plan of a request, shaped by the boundary, with the configured sampling."""
        plan = self.generation.plan(request, self.state(request), self._spec(request.user))
        return replace(self.boundary.shape(plan), sampling=self.sampling)

    def first(self, request: Request) -> Plan:
        """The plan of the first step on the way to an answer, shaped and drawn as `plan` is."""
        plan = self.generation.first(request, self.state(request), self._spec(request.user))
        return replace(self.boundary.shape(plan), sampling=self.sampling)

    def next(self, request: Request, responses: Sequence[Response]) -> Plan | None:
        """The plan of a further step of one sample, shaped and drawn as the first; None when its answer stands."""
        spec = self._spec(request.user)
        plan = self.generation.next(request, self.state(request), responses, spec)
        return None if plan is None else replace(self.boundary.shape(plan), sampling=replace(self.sampling, n=1))

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[list[str]]:
        """`sampling.n` answers of the untouched base to each request, on the plain prompt."""
        seeded = replace(sampling, seed=self.cfg.seed)
        jobs = [Job(r.id, replace(base_plan(r), sampling=seeded)) for r in requests]
        texts: dict[str, list[str]] = {job.request: [] for job in jobs}
        for response in self.decoder().generate(jobs):
            texts[response.request].append(response.text)
        return [texts[r.id] for r in requests]

    def decoder(self) -> Decoder | RemoteDecoder:
        decoding = self.cfg.decoding
        if self.remote is not None:
            return RemoteDecoder(self.remote, decoding.batch_size)
        budget = decoding.token_budget if decoding.grouping == "continuous" else None
        return Decoder(self.policy, decoding.batch_size, budget, decoding.prefix_tokens)

    def answer_at(self, strength: float | None) -> None:
        """Make answers at another strength than generation's own; None goes back to that."""
        node = cast(dict[str, Any], OmegaConf.to_container(self.cfg.generation, resolve=True))
        key = self.generation.strength
        self.generation = build(node if strength is None else {**node, key: strength})

    def requests(self, split: Literal["test", "validation"] = "test") -> list[Request]:
        """The held-out requests, at most `requests.limit` of each user; or those of validation, at most
        `tune.requests`."""
        limits = self.cfg.tune.requests if split == "validation" else self.cfg.requests.limit
        return _limited(self.data.requests(split), limits)

    def people(self, requests: Sequence[Request]) -> dict[str, dict[str, Any]]:
        """What reports show of each user: what they said they prefer, and their true stance where it is known."""
        found: dict[str, dict[str, Any]] = {}
        for request in requests:
            if request.user not in found:
                events = self.data.events(request.user)
                said = [e.payload["text"] for e in events if e.kind == "statement"]
                true = self.true_state(request)
                found[request.user] = {"statement": "; ".join(said)} if said else {}
                if true is not None and true.stance is not None:
                    found[request.user]["stance"] = true.stance.as_dict()
        return found


def _key(request: Request) -> tuple[str, float]:
    return request.id, request.time


def base_plan(request: Request) -> Plan:
    """The untouched base on the plain prompt."""
    return Plan((Stream((Chat(request.messages),)),))


def _limited(requests: Sequence[Request], limit: int | None) -> list[Request]:
    count: dict[str, int] = {}
    kept = []
    for request in requests:
        count[request.user] = count.get(request.user, 0) + 1
        if limit is None or count[request.user] <= limit:
            kept.append(request)
    return kept
