"""Output refinement: a trained corrector makes a better answer of a draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from personalign.contracts import PositiveInt
from personalign.generation.prompting import Prompted, before_request, checked, stream
from personalign.plans import Plan, PolicySpec
from personalign.types import Messages, Request, Response, UserState


class Aligner(Prompted):
    """Drafts on the plain request, then has the corrector correct the newest answer `rounds` times:
    y' ~ mu(. | x, y). The corrector is told nothing of the user: it is one for all.

    Answers are scored by the draft's plan alone. Raises UserError where the template lacks {draft} or has a field that
    nobody fills.
    """

    needs: ClassVar[tuple[str, ...]] = ("policy.corrector",)
    provides: ClassVar[tuple[str, ...]] = ("prompt.draft",)
    paper = "arXiv 2402.02416 (Aligner)"
    node = "alignment through feedback / inference-time / output refinement"

    def __init__(self, *, rounds: PositiveInt, template: str) -> None:
        self._rounds = rounds
        self._template = checked(template, ("draft",), ("request",))

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def correction(self, request: Request, state: UserState, draft: str) -> Messages:
        return before_request(request.messages, self._template, draft=draft)

    def next(self, request: Request, state: UserState, responses: Sequence[Response], spec: PolicySpec) -> Plan | None:
        """A further correction; None after the last."""
        if len(responses) > self._rounds:
            return None
        return Plan((stream(self.correction(request, state, responses[-1].text), deltas=spec.corrector),))

    def answers(self, responses: Sequence[Response]) -> Sequence[Response]:
        """The corrections, the newest first, and the draft."""
        return responses[::-1]


class MetaAligner(Aligner):
    """The same with what the user prefers in view, y' ~ mu(. | x, y, objectives in words): who wants something that no
    pair was about is served by its text. A user without a profile is corrected as by `Aligner`. What `equal` asks is
    for alignment alone (alignment=metaaligner)."""

    needs = ("policy.corrector", "state.profile")
    provides = ("prompt.draft", "prompt.equal")
    paper = "arXiv 2403.17141 (MetaAligner)"
    node = "alignment through feedback / inference-time / output refinement"

    def __init__(self, *, rounds: PositiveInt, template: str, objectives: str, equal: str) -> None:
        super().__init__(rounds=rounds, template=template)
        self._objectives = checked(objectives, ("draft", "profile"), ("request",))
        self._equal = checked(equal, ("draft", "dimensions"), ("request",))

    def correction(self, request: Request, state: UserState, draft: str) -> Messages:
        if not (state.profile and state.profile.strip()):
            return super().correction(request, state, draft)
        return before_request(request.messages, self._objectives, draft=draft, profile=state.profile)

    def equalisation(self, request: Request, draft: str, dimensions: Sequence[str]) -> Messages:
        return before_request(request.messages, self._equal, draft=draft, dimensions=", ".join(dimensions))
