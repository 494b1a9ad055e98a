"""The embedded test-bed: users whose true preference is known, over dimensions that can be computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import islice
from typing import Literal

from personalign.contracts import (
    Data,
    NaturalInt,
    NonNegativeFloat,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Reward,
    Sampler,
    Seed,
    UserError,
)
from personalign.data.exact_pairs import Answer, candidates, labels, prefer, ratings
from personalign.data.exact_pool import Prompt, of_split, prompts, topics
from personalign.data.exact_source import Source
from personalign.data.exact_stances import DRAWS, Population
from personalign.data.exact_statements import statement, unknown_dimensions
from personalign.plans import Sampling
from personalign.runtime.files import content_hash
from personalign.types import SPLITS, Event, Message, Pair, Request, Stance, UserState

SOURCE = "exact_users"
# What of the arguments says where the pool comes from: its content counts instead.
PLACES = ("self", "pool", "model", "cache")


class ExactUsers(Data):
    """Users with R_u(y) = (p^u)^T r(y), p^u drawn and r computed from the text (survey, section 4.1).

    Users come in three groups, in this order: seen (a history, and pairs in training), held out (a history,
    in no training pair) and cold (neither). All are asked the same held-out prompts. Answers come from a
    pool that the base model sampled; the bound truth reward labels pairs of them.
    """

    needs = ("reward.truth",)
    provides = ("events.stance", "events.statement", "events.choice", "prompts", "pairs", "labels", "ratings", "truth")
    paper = "arXiv 2503.17003, section 4.1"
    node = "preference memory / explicit"

    def __init__(
        self,
        *,
        kind: Literal["signed", "dirichlet", "clusters", "contextual", "hostile"],
        active: list[
            Literal["length", "grade", "warmth", "formality", "concreteness", "structure", "address", "caution"]
        ],
        users: PositiveInt,
        held_out: NaturalInt,
        cold: NaturalInt,
        clusters: PositiveInt,
        spread: NonNegativeFloat,
        concentration: PositiveFloat,
        history: NaturalInt,
        pairs_per_user: PositiveInt,
        min_gap: NonNegativeFloat,
        noise: NonNegativeFloat,
        train_prompts: PositiveInt | None,
        validation_prompts: PositiveInt | None,
        test_prompts: PositiveInt | None,
        pool: str | None,
        samples_per_prompt: PositiveInt,
        max_new_tokens: PositiveInt,
        temperature: PositiveFloat,
        top_p: PositiveFraction,
        seed: Seed,
        model: dict[str, object],
        cache: str,
    ) -> None:
        self._settings = {name: value for name, value in locals().items() if name not in PLACES}
        _check(kind, active, users, held_out, cold, samples_per_prompt)
        self._prompts = _prompts((train_prompts, validation_prompts, test_prompts), history)
        self._population = Population(active, topics(), seed, clusters, spread, concentration)
        self._personas = {f"user-{i:02d}": DRAWS[kind](self._population, i) for i in range(users)}
        names = list(self._personas)
        self._seen, self._cold = names[: users - held_out - cold], set(names[users - cold :])
        self._history, self._count, self._min_gap, self._noise = history, pairs_per_user, min_gap, noise
        drawn = Sampling(temperature, top_p=top_p, max_new_tokens=max_new_tokens, n=samples_per_prompt, seed=seed)
        asked = [prompt for some in self._prompts.values() for prompt in some]
        self._source = Source(pool, model, drawn, asked, cache)
        self._reward: Reward | None = None
        self._answers: dict[tuple[str, str], list[Answer]] = {}

    def bind(self, truth: Reward | None, sampler: Sampler) -> None:
        self._reward, self._source.sampler = truth, sampler
        self._answers.clear()

    def users(self) -> Sequence[str]:
        return list(self._personas)

    def truth(self, request: Request) -> UserState:
        """The user's true stance, on the topic of the request's context."""
        return UserState(stance=Stance.of(self._personas[request.user].at(request.context.get("topic", ""))))

    def events(self, user: str) -> list[Event]:
        """The declared stance, a statement of it in words, then choices between answers to train prompts."""
        if user in self._cold:
            return []
        persona = self._personas[user]
        said = statement(persona, self._population.stream("statement", user))
        pairs = islice(self._walk(user, "history"), self._history)
        payloads = [
            ("stance", {"stance": dict(persona.stance)}),
            ("statement", {"text": said}),
            *(("choice", _choice(pair)) for pair in pairs),
        ]
        return [
            Event(id=f"{user}/{t}", user=user, time=float(t), kind=kind, payload=payload, source=SOURCE)  # type: ignore[arg-type]
            for t, (kind, payload) in enumerate(payloads)
        ]

    def requests(self, split: str) -> list[Request]:
        """Every prompt of the split by every user; in the train split by seen users alone."""
        chosen = self._prompts[split]
        return [self._request(user, prompt) for user in self._takers(split) for prompt in chosen]

    def pairs(self, split: str) -> list[Pair]:
        """Up to `pairs_per_user` training pairs of each seen user; else one for each user and prompt.

        Prompts without a pair of `min_gap` are left out. No prompt of a user's history is in their training
        pairs. Raises UserError where there is no pair at all.
        """
        found: list[Pair] = []
        for user in self._takers(split):
            count = self._count if split == "train" else len(self._walks(user, split))
            found += islice(self._walk(user, split), count)
        if not found:
            raise UserError(
                f"no {split} pair has a reward gap of {self._min_gap} or more: "
                "lower data.min_gap or raise data.samples_per_prompt"
            )
        return found

    def fingerprint(self) -> str:
        """A content hash of settings, prompts and pool."""
        rows = [astuple(prompt) for prompt in prompts()]
        pool = self._source.pool.digest
        return content_hash({"settings": self._settings, "prompts": rows, "pool": pool})[:16]

    def _takers(self, split: str) -> list[str]:
        return self._seen if split == "train" else list(self._personas)

    def _request(self, user: str, prompt: Prompt) -> Request:
        return Request(
            id=f"{user}/{prompt.id}",
            user=user,
            messages=(Message("user", prompt.text),),
            time=float(self._history + 2),
            context={"topic": prompt.topic},
            split=prompt.split,
        )

    def _walk(self, user: str, purpose: str) -> Iterator[Pair]:
        """Pairs of a user, each prompt once before any comes a second time."""
        stream = self._population.stream(purpose, user)
        walks = self._walks(user, purpose)
        while walks:
            for prompt, walk in walks:
                yield self._pair(self._request(user, prompt), *prefer(*walk.pop(), self._noise, stream))
            walks = [(prompt, walk) for prompt, walk in walks if walk]

    def _walks(self, user: str, purpose: str) -> list[tuple[Prompt, list[tuple[Answer, Answer]]]]:
        """The prompts that have pairs, with these: first history, then training.

        All users are asked in the same order, as annotators are, so that opposed ones judge the same answers.
        """
        order = list(self._prompts["train" if purpose == "history" else purpose])
        self._population.stream("order").shuffle(order)
        streams = [self._population.stream("candidates", prompt.id) for prompt in order]
        found = [candidates(self._scored(user, p), self._min_gap, s) for p, s in zip(order, streams, strict=True)]
        walks = [(prompt, walk) for prompt, walk in zip(order, found, strict=True) if walk]
        if purpose == "train":
            return walks[self._history :]
        return walks[: self._history] if purpose == "history" else walks

    def _pair(self, request: Request, chosen: Answer, rejected: Answer) -> Pair:
        return Pair(
            id=f"{request.id}/{chosen.index}-{rejected.index}",
            request=request,
            chosen=chosen.text,
            rejected=rejected.text,
            labels=labels(chosen, rejected),
            ratings=ratings(chosen, rejected),
        )

    def _scored(self, user: str, prompt: Prompt) -> list[Answer]:
        """The pool's answers to a prompt with the true reward that each has for this user."""
        key = (user, prompt.id)
        if key not in self._answers:
            if self._reward is None:
                raise UserError("data=exact_users labels pairs with the true reward: use reward@truth=exact")
            texts = self._source.answers(prompt)
            request = self._request(user, prompt)
            scores = self._reward.score(request, self.truth(request), texts)
            self._answers[key] = [Answer(i, t, s) for i, (t, s) in enumerate(zip(texts, scores, strict=True))]
        return self._answers[key]


def _choice(pair: Pair) -> dict[str, str]:
    prompt = pair.request.messages[-1].content
    return {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def _prompts(limits: Sequence[int | None], history: int) -> dict[str, list[Prompt]]:
    """The prompts of every split. Raises UserError where histories take all that pairs are made of."""
    found = {split: of_split(split, limit) for split, limit in zip(SPLITS, limits, strict=True)}
    if history >= len(found["train"]):
        raise UserError(
            f"data.history={history} leaves no prompt for training pairs: "
            f"there are {len(found['train'])} train prompts; lower it or raise data.train_prompts"
        )
    return found


def _check(kind: str, active: Sequence[str], users: int, held_out: int, cold: int, samples: int) -> None:
    if not active or len(set(active)) < len(active):
        raise UserError("data.active must name one or more dimensions, each once")
    if unknown := unknown_dimensions(active):
        raise UserError(f"data.active: no dimension {', '.join(unknown)}")
    if kind == "hostile" and "warmth" not in active:
        raise UserError("data.kind=hostile is about warmth: put it in data.active")
    if held_out + cold >= users:
        raise UserError(
            f"data.users={users} leaves no seen user besides data.held_out={held_out} and data.cold={cold}: raise it"
        )
    if samples < 2:
        raise UserError("data.samples_per_prompt must be 2 or more: a pair needs two answers")
