"""The implicit reward of a policy: how much likelier personalization makes an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from personalign.contracts import Reward
from personalign.decoding.scoring import Reading, score_readings
from personalign.types import Chat, Plan, Request, Score, Stream, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy


class Implicit(Reward):
    """beta (log pi(y | x, user) - log pi_ref(y | x)): the log-ratio of the system's plan to the untouched base on
    the plain prompt, summed over the answer's tokens (DPO, arXiv 2305.18290, eq. 5; PAD, arXiv 2410.04070, eq. 8).

    For a plan of several streams log pi is its log-linear score, which lacks only the normaliser of each step.
    """

    needs = ()
    provides = ("reward.guide", "reward.truth")
    paper = "arXiv 2305.18290, eq. 5; arXiv 2410.04070, eq. 8"
    node = "personalized rewarding / parameter"

    def __init__(self, *, beta: float) -> None:
        self.beta = beta
        self._policy: Policy | None = None
        self._plan: Callable[[Request], Plan] | None = None

    def bind(self, policy: Policy, plan: Callable[[Request], Plan]) -> None:
        self._policy, self._plan = policy, plan

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        return self.score_all([(request, state, responses)])[0]

    def score_all(self, asked: Sequence[tuple[Request, UserState, Sequence[str]]]) -> list[list[Score]]:
        """All answers in few forward passes; a prompt and an answer that recur are read once."""
        if self._policy is None or self._plan is None:
            raise RuntimeError("the implicit reward reads a policy: call bind first")
        readings = [self._reading(request, text) for request, _, texts in asked for text in texts]
        values = iter(score_readings(self._policy, readings))
        return [[Score(self.beta * next(values)) for _ in texts] for _, _, texts in asked]

    def _reading(self, request: Request, text: str) -> Reading:
        """The plan with the base taken away: what both share, for the base itself everything, is never computed."""
        assert self._policy is not None and self._plan is not None
        plan = self._plan(request)
        against = Stream((Chat(request.messages),), weight=-1.0)
        answer = tuple(self._policy.encode_answer(text)[:-1])
        return Reading(request.id, Plan((*plan.streams, against), plan.candidates), answer)
