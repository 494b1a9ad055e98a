"""Prompt refinement: the policy first rewrites the request for its user, then answers what it wrote."""

from __future__ import annotations

from personalign.contracts import Placement
from personalign.generation.agent import Agent
from personalign.generation.prompting import checked


class RefinedPrompt(Agent):
    """Asks itself for an instruction that holds the request and what the user prefers, and answers that instruction in
    the place of the request, with nothing else in view.

    What trains on its prompts, and what scores answers by its plan, sees the preference prompt, which is also answered
    where the rewriting comes to nothing. A user without a profile is asked plainly. The paper trains a rewriter by
    supervised and reinforcement learning; here the policy rewrites as it stands.
    """

    needs = ("state.profile",)
    provides = ()
    paper = "arXiv 2310.00152 (learning to rewrite prompts), without its training"
    node = "personalized generation / prompting / prompt refinement"

    def __init__(self, *, rewrite: str, template: str, placement: Placement) -> None:
        super().__init__(
            steps=["rewriting", "answer"],
            answers=["answer"],
            prompts={"rewriting": checked(rewrite, ("request", "profile")), "answer": "{rewriting}"},
            notes=1,
            budget=1,  # nothing follows the answer
            template=template,
            placement=placement,
        )
