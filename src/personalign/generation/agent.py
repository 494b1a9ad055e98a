"""An agent: a workflow of named steps, each a prompt, on the way to an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from personalign.contracts import Placement, PositiveInt, UserError
from personalign.generation.preference_prompt import PreferencePrompt
from personalign.generation.prompting import checked, fill, in_place, recalled, stream
from personalign.plans import Plan, PolicySpec
from personalign.types import Message, Messages, Request, Response, UserState, last_user_text

FIELDS = ("request", "profile", "notes")


class Agent(PreferencePrompt):
    """Goes through `steps` in their order, each asked with its prompt; what the newest of the `answers` among them said
    is given, or an earlier one where the boundary does not admit it.

    A prompt may hold {request}, {profile}, {notes} (what memory recalled: the step of retrieval) and, by its name, what
    an earlier step said last. Up to the first answer each step is asked afresh, in the place of the newest user turn;
    the first answer, where it has no prompt of its own, on the preference prompt. After it the steps are turns of one
    chat: the prompt of the first answer, the newest answer, and what has been asked and said since. A sample that has
    generated `budget` tokens begins no step after the first answer. A user of whom nothing is known that a prompt would
    show gets the answer to the plain request. Raises UserError where steps and prompts do not fit one another.
    """

    needs: ClassVar[tuple[str, ...]] = ("state.profile", "state.snippets")
    provides = ()
    paper = "arXiv 2503.17003, section 4.2 (workflow customization), with arXiv 2402.01622 among its examples"
    node = "personalized generation / agent / workflow customization"

    def __init__(
        self,
        *,
        steps: list[str],
        answers: list[str],
        prompts: dict[str, str],
        notes: PositiveInt,
        budget: PositiveInt,
        template: str,
        placement: Placement,
    ) -> None:
        super().__init__(template=template, placement=placement)
        self._steps, self._answers, self._notes, self._budget = steps, answers, notes, budget
        self._first = _first(steps, answers)
        self._prompts = _prompts(steps, prompts, self._first)
        self._shows_notes = any("{notes}" in prompt for prompt in self._prompts.values())

    def first(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        if not self._known(state):
            return self.plan(request, state, spec)
        return Plan((stream(self._chat(request, state, ()), deltas=spec.aligned),))

    def next(self, request: Request, state: UserState, responses: Sequence[Response], spec: PolicySpec) -> Plan | None:
        """The next step; None after the last, or when there is an answer and the budget is spent."""
        if not self._known(state) or len(responses) >= len(self._steps):
            return None
        if len(responses) > self._first and sum(r.cost.new_tokens for r in responses) >= self._budget:
            return None
        return Plan((stream(self._chat(request, state, responses), deltas=spec.aligned),))

    def answers(self, responses: Sequence[Response]) -> Sequence[Response]:
        """The answers among the steps, the newest first; who is asked plainly has one answer alone."""
        made = [response for i, response in enumerate(responses) if self._steps[i] in self._answers]
        return made[::-1] or responses[-1:]

    def _newest(self, responses: Sequence[Response]) -> int | None:
        made = range(len(responses))
        return max((i for i in made if self._steps[i] in self._answers), default=None)

    def _known(self, state: UserState) -> bool:
        said = bool(state.profile and state.profile.strip())
        return said or (self._shows_notes and bool(recalled(state, self._notes)))

    def _chat(self, request: Request, state: UserState, responses: Sequence[Response]) -> Messages:
        """What the step after these responses is asked."""
        step = len(responses)
        values = self._values(request, state, responses[: self._first])
        if step <= self._first:
            return self._afresh(request, state, self._steps[step], values)
        newest = self._newest(responses)
        assert newest is not None, "an answer was made"
        chat = self._afresh(request, state, self._steps[self._first], values)
        for i in range(newest, step):
            values = self._values(request, state, responses[: i + 1])
            asked = fill(self._prompts[self._steps[i + 1]], **values)
            chat = (*chat, Message("assistant", responses[i].text), Message("user", asked))
        return chat

    def _afresh(self, request: Request, state: UserState, step: str, values: Mapping[str, str]) -> Messages:
        """A step by itself; where it has no prompt, or one that comes to nothing, the preference prompt."""
        text = fill(self._prompts.get(step, ""), **values)
        return in_place(request.messages, text) if text.strip() else self.render(request, state)

    def _values(self, request: Request, state: UserState, responses: Sequence[Response]) -> dict[str, str]:
        said = {self._steps[i]: response.text.strip() for i, response in enumerate(responses)}
        notes = "\n".join(f"- {text}" for text in recalled(state, self._notes))
        return {"request": last_user_text(request.messages), "profile": state.profile or "", "notes": notes, **said}


def _first(steps: Sequence[str], answers: Sequence[str]) -> int:
    """The place of the first answer."""
    if taken := [step for step in steps if step in FIELDS]:
        raise UserError(f"generation.steps has {taken[0]!r}, which is a field of prompts: give that step another name")
    if not set(steps) & set(answers):
        raise UserError(
            f"generation.steps has none of generation.answers: one of {', '.join(answers) or 'none'} has to be a step"
        )
    return next(i for i, step in enumerate(steps) if step in answers)


def _prompts(steps: Sequence[str], prompts: Mapping[str, str], first: int) -> dict[str, str]:
    """The prompts of the steps, checked: each has one, which holds nothing but what is known at its first time."""
    found: dict[str, str] = {}
    for place, step in enumerate(steps):
        if step in found or (place == first and step not in prompts and step not in steps[place + 1 :]):
            continue
        if step not in prompts:
            raise UserError(f"generation.prompts has no prompt for the step {step!r}: add generation.prompts.{step}")
        found[step] = checked(prompts[step], (), (*FIELDS, *dict.fromkeys(steps[:place])))
    return found
