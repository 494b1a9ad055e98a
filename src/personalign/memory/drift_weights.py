"""Drift's weights of attributes: what system prompts for them make of a user's choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from personalign.contracts import PositiveInt, UserError
from personalign.memory.choices import ChoiceMemory
from personalign.memory.readings import Readings
from personalign.runtime.prompts import in_system
from personalign.types import Event, Message, Request, Stance, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy

Ids = tuple[int, ...]
# What margins depend on beside the weights: the plain prompt and that of each attribute, the chosen and the rejected.
Read = tuple[tuple[Ids, ...], Ids, Ids]
FOLDER = "drift_weights"


class DriftWeights(ChoiceMemory):
    """The stance p = d / |d| on `dimensions`: how much a system prompt for each favours what the user chose.

    d_k is the mean over the user's choices of [log pi(chosen | prompt of k) - log pi(rejected | prompt of k)] minus
    the same on the plain request (Drift, arXiv 2502.14289). pi is the model that reads these prompts at decoding time,
    untouched: the further one where there is one, else the base. No gradient is taken: Bradley-Terry's likelihood of
    the choices under rewards sum_k p_k log(pi_k / pi) is to first order the mean margin p . d, which this unit vector
    makes largest. That scale is ours; generation's `beta` multiplies it.

    The newest `choices` count; one between equal answers, or that does not fit into the model's context, is left out.
    Without any, or without a policy, there is no stance. Log-likelihoods are worked out once and kept below the user,
    whence `forget` removes them. Raises UserError for a dimension without a prompt.
    """

    needs = ("events.choice", "model.weights")
    provides = ("state.stance",)
    paper = "arXiv 2502.14289 (Drift)"
    node = "preference memory / preference inference"

    def __init__(
        self, *, attributes: dict[str, str], dimensions: list[str] | None, choices: PositiveInt, cache: str
    ) -> None:
        super().__init__()
        self._attributes = _chosen(attributes, dimensions)
        self._choices, self._readings = choices, Readings[Read](cache, FOLDER)

    def forget(self, user: str) -> None:
        super().forget(user)
        self._readings.forget(user)

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        return self.recall_all([request], policy)[0]

    def recall_all(self, requests: Sequence[Request], policy: Policy | None) -> list[UserState]:
        """What has to be read of any of the requests' users is read together."""
        if policy is None:
            return [UserState() for _ in requests]
        reader = policy.learner
        events = {(event.user, event.id): event for request in requests for event in self._newest(request)}
        reads = {at: self._read(event, reader) for at, event in events.items()}
        fitting = {at: (at[0], read) for at, read in reads.items() if _tells(read, reader)}
        found = self._margins(list(fitting.values()), reader)
        moved = {at: np.subtract(found[one][1:], found[one][0]) for at, one in fitting.items()}
        keys = [[(event.user, event.id) for event in self._newest(request)] for request in requests]
        return [self._state([moved[at] for at in mine if at in moved]) for mine in keys]

    def _newest(self, request: Request) -> list[Event]:
        return self.before(request)[-self._choices :]

    def _state(self, moved: Sequence[np.ndarray]) -> UserState:
        """The stance of what each choice is moved by each attribute."""
        mean = np.mean(moved, axis=0) if moved else np.zeros(len(self._attributes))
        size = float(np.linalg.norm(mean))
        return UserState(stance=Stance(tuple(self._attributes), tuple((mean / size).tolist()))) if size else UserState()

    def _read(self, event: Event, policy: Policy) -> Read:
        """The prompts and both answers, as token ids."""
        plain = (Message("user", str(event.payload["prompt"])),)
        asked = [plain, *(in_system(plain, told) for told in self._attributes.values())]
        chosen, rejected = (tuple(policy.encode_answer(str(event.payload[key]))) for key in ("chosen", "rejected"))
        return tuple(tuple(policy.encode(messages)) for messages in asked), chosen, rejected

    def _margins(self, asked: Sequence[tuple[str, Read]], policy: Policy) -> Mapping[tuple[str, Read], list[float]]:
        """Of each choice log pi(chosen | prompt) - log pi(rejected | prompt), on the plain prompt first."""
        from personalign.memory.margins import margins
        from personalign.policy.reference import fingerprint

        def read(one: Read) -> list[float]:
            return margins(policy, *one)

        return self._readings.of(asked, [fingerprint(policy, ())], lambda one: len(one[0]), read, "reading choices")


def _tells(read: Read, policy: Policy) -> bool:
    """Whether there is a difference, other than of rounding, that can be read."""
    prompts, chosen, rejected = read
    return chosen != rejected and max(map(len, prompts)) + max(len(chosen), len(rejected)) <= policy.context


def _chosen(attributes: Mapping[str, str], dimensions: Sequence[str] | None) -> dict[str, str]:
    """The prompts of these dimensions, or all."""
    names = list(attributes) if dimensions is None else dimensions
    if not names or len(set(names)) < len(names):
        raise UserError("memory.drift_weights.dimensions must name one or more dimensions, each once")
    if unknown := [name for name in names if name not in attributes]:
        raise UserError(
            f"memory.drift_weights.dimensions: no prompt stands for {unknown[0]!r}: add one to prompts.attributes "
            f"(now {', '.join(sorted(attributes))})"
        )
    return {name: attributes[name] for name in names}
