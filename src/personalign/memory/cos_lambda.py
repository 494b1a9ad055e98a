"""How strongly a user's own texts show what is known of them: the posterior of context steering's lambda."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from personalign.contracts import Placement, PositiveInt, TextKind, UserError
from personalign.memory.log import EventMemory, snippet, text_of
from personalign.memory.readings import Readings
from personalign.runtime.prompts import preference_template, told
from personalign.types import Event, Message, Messages, Request, Snippet, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy

Ids = tuple[int, ...]
# What a log-likelihood depends on beside the weights: the prompts without and with each context, and the text.
Read = tuple[Ids, tuple[Ids, ...], Ids]
FOLDER = "cos_lambda"
SENTENCE = re.compile(r"(?<=[.!?])\s+")
MOST = 4096  # points of the grid of all contexts together


class CosLambda(EventMemory):
    """Recalls the `k` newest contexts as snippets, oldest first, each with its lambda as weight: the mean of
    p(lambda | y) ~ prod_n p(y_n | x_n, lambda) over a grid for all contexts together, every point as likely
    beforehand (CoS, arXiv 2405.01768: Bayesian inference of lambda).

    p(t | lambda) is context steering's own, normalised at each token: proportional to p(t | none)^(1 - sum lambda_i)
    prod_i p(t | context_i)^lambda_i, under the untouched base. The y_n are the newest `texts` that the user wrote, or
    chose for their request x_n; one that does not fit into the model's context is left out. Without any, or without a
    policy, lambda is the grid's mean. A likelihood is worked out once and kept below the user, whence `forget` removes
    it. Raises UserError where a kind is both context and evidence, or the grid is too large.
    """

    needs = ("model.weights",)
    provides = ("state.snippets",)
    paper = "arXiv 2405.01768 (CoS, Bayesian inference of lambda)"
    node = "preference memory / preference inference"

    def __init__(
        self,
        *,
        contexts: list[TextKind],
        sentences: bool,
        k: PositiveInt,
        evidence: list[Literal["text", "choice"]],
        texts: PositiveInt,
        longest: PositiveInt,
        grid: list[float],
        prompt: str,
        template: str,
        placement: Placement,
        cache: str,
    ) -> None:
        super().__init__([*contexts, *evidence])
        if both := sorted(set(contexts) & set(evidence)):
            raise UserError(f"memory.cos_lambda: {both[0]} cannot be both a context and evidence: drop it from one")
        if not grid or len(grid) ** k > MOST:
            raise UserError(f"memory.cos_lambda: {len(grid)} values for {k} contexts: they make 1 to {MOST} points")
        self._kinds_told, self._sentences, self._k = frozenset(contexts), sentences, k
        self._evidence, self._texts, self._longest = frozenset(evidence), texts, longest
        self._grid, self._prompt, self._readings = tuple(grid), prompt, Readings[Read](cache, FOLDER)
        self._template, self._placement = preference_template(template, placement), placement

    def forget(self, user: str) -> None:
        super().forget(user)
        self._readings.forget(user)

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        return self.recall_all([request], policy)[0]

    def recall_all(self, requests: Sequence[Request], policy: Policy | None) -> list[UserState]:
        """What has to be read of any of the requests' users is read together."""
        known = [self._contexts(request) for request in requests]
        reads = [self._reads(request, some, policy) for request, some in zip(requests, known, strict=True)]
        asked = [[(request.user, read) for read in some] for request, some in zip(requests, reads, strict=True)]
        found = self._likelihoods([one for some in asked for one in some], policy) if policy is not None else {}
        return [self._weighed(some, [found[one] for one in mine]) for some, mine in zip(known, asked, strict=True)]

    def _weighed(self, contexts: Sequence[Snippet], likelihoods: Sequence[Sequence[float]]) -> UserState:
        """The contexts with the posterior mean of each one's lambda."""
        points = np.array(self._points(len(contexts)))
        total = np.sum(np.array(likelihoods).reshape(-1, len(points)), axis=0)
        mass = np.exp(total - total.max())
        means = ((mass / mass.sum()) @ points).tolist()
        return UserState(snippets=tuple(replace(one, weight=by) for one, by in zip(contexts, means, strict=True)))

    def _contexts(self, request: Request) -> tuple[Snippet, ...]:
        """The newest contexts, oldest first; with `sentences` each sentence of an event is one."""
        found = []
        for event in self.texts(request):
            if event.kind in self._kinds_told:
                whole = snippet(event)
                texts = SENTENCE.split(whole.text) if self._sentences else [whole.text]
                found += [Snippet(text, whole.event, whole.owner, payload=whole.payload) for text in texts]
        return tuple(found[-self._k :])

    def _reads(self, request: Request, contexts: Sequence[Snippet], policy: Policy | None) -> list[Read]:
        """The prompts and the text of every piece of evidence, as token ids."""
        if policy is None or not contexts:
            return []
        found = []
        for event in [event for event in self.texts(request) if event.kind in self._evidence][-self._texts :]:
            asked, text = self._said(event)
            prompts = [asked, *(told(asked, one.text, self._template, self._placement) for one in contexts)]
            plain, *others = (tuple(policy.encode(messages)) for messages in prompts)
            answer = tuple(policy.encode_answer(text)[:-1])[: self._longest]
            if answer and max(map(len, (plain, *others))) + len(answer) <= policy.context:
                found.append((plain, tuple(others), answer))
        return found

    def _said(self, event: Event) -> tuple[Messages, str]:
        """What the user was asked, and what they wrote or chose."""
        if event.kind == "choice":
            return (Message("user", str(event.payload["prompt"])),), str(event.payload["chosen"])
        return (Message("user", self._prompt),), text_of(event)

    def _likelihoods(self, asked: Sequence[tuple[str, Read]], policy: Policy) -> dict[tuple[str, Read], list[float]]:
        """log p(text | lambda) at every point of the grid, of what each user's evidence asks for."""
        from personalign.memory.steered import steered_logprobs
        from personalign.policy.reference import fingerprint

        def read(one: Read) -> list[float]:
            plain, contexts, answer = one
            return steered_logprobs(policy, plain, contexts, answer, self._points(len(contexts)))

        settings = [fingerprint(policy, ()), self._grid]
        return self._readings.of(asked, settings, self._size, read, "reading for lambda")

    def _points(self, contexts: int) -> list[tuple[float, ...]]:
        """The grid of all contexts together."""
        return list(itertools.product(self._grid, repeat=contexts))

    def _size(self, read: Read) -> int:
        points: int = len(self._grid) ** len(read[1])
        return points
