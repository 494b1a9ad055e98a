"""An agent that checks its own work: draft, critique with the user's preference in view, revision."""

from __future__ import annotations

from collections.abc import Sequence

from personalign.contracts import NaturalInt, Placement, PositiveInt
from personalign.generation.preference_prompt import PreferencePrompt
from personalign.generation.prompting import checked, fill, stream
from personalign.types import Message, Messages, Plan, PolicySpec, Request, Response, UserState


class DraftCritiqueRevise(PreferencePrompt):
    """Drafts on the preference prompt, then `rounds` times asks itself what to improve, and improves it.

    The steps are turns of one chat: the prompt, the newest draft, the request for a critique, the critique, the
    request for a revision. A sample that has generated `budget` tokens begins no further step. The last whole
    revision is its answer, the draft where there is none. A user without a profile gets the draft on the plain
    request. Raises UserError where a template lacks {profile} or has a field that nobody fills.
    """

    needs = ("state.profile",)
    provides = ()
    paper = "arXiv 2303.17651, algorithm 1 (Self-Refine); arXiv 2503.17003, section 4.2"
    node = "personalized generation / agent / workflow execution"

    def __init__(
        self,
        *,
        rounds: NaturalInt,
        budget: PositiveInt,
        critique: str,
        revision: str,
        template: str,
        placement: Placement,
    ) -> None:
        super().__init__(template=template, placement=placement)
        self._rounds = rounds
        self._budget = budget
        self._critique = checked(critique, ("profile",))
        self._revision = checked(revision, (), ("profile",))

    def next(self, request: Request, state: UserState, responses: Sequence[Response], spec: PolicySpec) -> Plan | None:
        """The next critique or revision; None after the last round, or when the budget is spent."""
        if not (state.profile and state.profile.strip()) or self._done(responses):
            return None
        newest = self.final(responses)
        chat = (*self.render(request, state), *self._turns(newest, self._critique, state.profile))
        if responses[-1] is not newest:
            chat = (*chat, *self._turns(responses[-1], self._revision, state.profile))
        return Plan((stream(chat, deltas=spec.aligned),))

    def final(self, responses: Sequence[Response]) -> Response:
        """The newest draft: drafts and critiques take turns, and a critique is no answer."""
        return responses[(len(responses) - 1) // 2 * 2]

    def _done(self, responses: Sequence[Response]) -> bool:
        spent = sum(response.cost.new_tokens for response in responses)
        return len(responses) > 2 * self._rounds or spent >= self._budget

    def _turns(self, said: Response, template: str, profile: str) -> Messages:
        return Message("assistant", said.text), Message("user", fill(template, profile=profile))
