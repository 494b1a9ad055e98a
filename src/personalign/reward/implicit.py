"""The implicit reward of a policy: how much likelier personalization makes an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from personalign.contracts import PositiveFloat, Reward
from personalign.decoding.scoring import Reading, score_readings
from personalign.plans import Chat, Plan, Stream
from personalign.types import Request, Score, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy


class Implicit(Reward):
    """beta (log pi(y | x, user) - log pi_ref(y | x)): the log-ratio of the system's plan to the untouched base on
    the plain prompt, summed over the answer's tokens (DPO, arXiv 2305.18290, eq. 5; PAD, arXiv 2410.04070, eq. 8).

    For a log-linear plan of several streams log pi is its score, which lacks only the normaliser of each step.
    """

    needs = ("model.weights", "plan")
    provides = ()
    paper = "arXiv 2305.18290, eq. 5; arXiv 2410.04070, eq. 8"
    node = "personalized rewarding / parameter"

    def __init__(self, *, beta: PositiveFloat) -> None:
        self.beta = beta
        self._policy: Policy | None = None
        self._plan: Callable[[Request], Plan] | None = None

    def bind(self, policy: Policy | None, plan: Callable[[Request], Plan]) -> None:
        self._policy, self._plan = policy, plan

    def content(self, request: Request, state: UserState) -> object:
        """The plan, whatever it was made from."""
        assert self._plan is not None
        plan = self._plan(request).simplified()
        return plan.streams, plan.combine, plan.echo

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        return self.score_all([(request, state, responses)])[0]

    def score_all(self, asked: Sequence[tuple[Request, UserState, Sequence[str]]]) -> list[list[Score]]:
        """All answers in few forward passes; a prompt and an answer that recur are read once."""
        if self._policy is None or self._plan is None:
            raise RuntimeError("the implicit reward reads a policy: call bind first")
        texts = [(request, text) for request, _, some in asked for text in some]
        ours = [self._reading(request, text, self._plan(request)) for request, text in texts]
        theirs = [
            self._reading(request, text, self.reference(request, reading.plan))
            for (request, text), reading in zip(texts, ours, strict=True)
        ]
        if [one.plan.streams for one in ours] == [one.plan.streams for one in theirs]:
            return [[Score(0.0) for _ in some] for _, _, some in asked]
        # Apart: what the base thinks of an answer is the same for every composition, and is kept for them.
        against = score_readings(self._policy, theirs, "implicit reward, reference", self._policy.cache)
        values = score_readings(self._policy, ours, "implicit reward")
        ratios = (self.beta * (value - other) for value, other in zip(values, against, strict=True))
        return [[Score(next(ratios)) for _ in some] for _, _, some in asked]

    def reference(self, request: Request, plan: Plan) -> Plan:
        """What the plan is compared with: the untouched base on the plain prompt."""
        return Plan((Stream((Chat(request.messages),)),))

    def _reading(self, request: Request, text: str, plan: Plan) -> Reading:
        assert self._policy is not None
        return Reading(request.id, plan.simplified(), tuple(self._policy.encode_answer(text)[:-1]))


class ImplicitPrompt(Implicit):
    """beta (log pi(y | x, user) - log pi(y | x)): what the prompt alone makes of the plan's own, trained policy; each
    stream is compared with itself on the plain prompt (ICDPO, arXiv 2402.09320).

    Without training, and of one stream, it is `Implicit`. Where the plain prompt is the plan's it is 0.
    """

    needs = ("model.weights", "plan")
    provides = ()
    paper = "arXiv 2402.09320 (ICDPO)"
    node = "personalized rewarding / parameter"

    def reference(self, request: Request, plan: Plan) -> Plan:
        plain = (Chat(request.messages),)
        return replace(plan, streams=tuple(replace(stream, prompt=plain) for stream in plan.streams))
