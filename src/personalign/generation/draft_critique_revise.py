"""An agent that checks its own work: draft, critique with the user's preference in view, revision."""

from __future__ import annotations

from personalign.contracts import NaturalInt, Placement, PositiveInt
from personalign.generation.agent import Agent
from personalign.generation.prompting import checked


class DraftCritiqueRevise(Agent):
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
        prompts = {"critique": checked(critique, ("profile",)), "revision": checked(revision, (), ("profile",))}
        super().__init__(
            steps=["draft", *["critique", "revision"] * rounds],
            answers=["draft", "revision"],
            prompts=prompts,
            notes=1,
            budget=budget,
            template=template,
            placement=placement,
        )
