"""A user whose true preference is known, and who answers by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import numpy as np

from personalign.contracts import Data, Feedback, Fraction, NonNegativeFloat, PositiveFloat, Reward, Seed, UserError
from personalign.runtime.seeds import derive
from personalign.types import Event, Request, Response, Stance, UserState

SOURCE = "simulated"


class SimulatedUser(Feedback):
    """Chooses between two answers by the true reward R: P(y1) = sigma(beta (R(y1) - R(y2))) (Bradley-Terry).

    A choice is turned around with probability `noise`. The true stance rotates by `drift` a round, in a plane of its
    own for every user that holds the stance of round 0; its length stays, so that a single weight may leave [-1, 1].
    What is drawn depends on the seed, the user, the round, the request and the two texts, in no order: asking more,
    asking others first or showing the pair the other way round changes no answer.
    """

    needs = ("truth", "reward.truth")
    provides = ()
    paper = "arXiv 2503.17003, section 4.3; PReF, arXiv 2503.06358"
    node = "alignment through feedback / multi-objective / interactive preference learning"

    def __init__(
        self,
        *,
        beta: PositiveFloat,
        noise: Fraction,
        drift: NonNegativeFloat,
        dimensions: list[str],
        start: float,
        seed: Seed,
    ) -> None:
        """`drift` is in radians, on the user's own dimensions and `dimensions`; `start` is the time of round 0."""
        self._beta, self._noise, self._drift, self._dimensions = beta, noise, drift, dimensions
        self._start, self._seed = start, seed
        self._data: Data | None = None
        self._reward: Reward | None = None

    def bind(self, data: Data, truth: Reward | None) -> None:
        self._data, self._reward = data, truth

    def events(self, request: Request, responses: Sequence[Response]) -> list[Event]:
        """One choice, at the time start + round; none between equal texts.

        Raises UserError unless two responses of one round are shown, and where the true stance is not known.
        """
        if len(responses) != 2 or responses[0].round != responses[1].round:
            raise UserError(
                f"request {request.id!r}: feedback=simulated compares two answers of one round, and was shown "
                f"{len(responses)} of rounds {sorted({r.round for r in responses})}: let query choose a pair"
            )
        round = responses[0].round
        texts = sorted(response.text for response in responses)
        if texts[0] == texts[1]:
            return []
        chosen, rejected = texts if self._first(request, round, texts) else texts[::-1]
        return [
            Event(
                id=f"{SOURCE}/{round}/{request.id}/{derive(0, *texts):x}",
                user=request.user,
                time=self._start + round,
                kind="choice",
                payload={"prompt": request.messages[-1].content, "chosen": chosen, "rejected": rejected},
                source=SOURCE,
            )
        ]

    def truth(self, request: Request, round: int) -> UserState:
        return UserState(stance=self.stance(request, round))

    def stance(self, request: Request, round: int) -> Stance:
        """The true stance in a round. Raises UserError where it is not known, or has no plane to rotate in."""
        state = None if self._data is None else self._data.truth(request)
        if state is None or state.stance is None:
            raise UserError(f"user {request.user!r} has no true stance: feedback=simulated needs data that know it")
        if self._drift == 0.0:
            return state.stance
        values = {**dict.fromkeys(self._dimensions, 0.0), **state.stance.as_dict()}
        if len(values) < 2:
            raise UserError(
                f"user {request.user!r} has a stance of one dimension, which cannot turn: name another one in "
                "feedback.dimensions, or set feedback.drift=0"
            )
        other = np.random.default_rng(derive(self._seed, "drift", request.user)).standard_normal(len(values))
        turned = rotated(np.array(list(values.values())), other, self._drift * round)
        return Stance(tuple(values), tuple(turned.tolist()))

    def _first(self, request: Request, round: int, texts: Sequence[str]) -> bool:
        """Whether the first of the two is chosen."""
        if self._reward is None:
            raise UserError("feedback=simulated needs the true reward: reward@truth=exact")
        one, two = self._reward.score(request, UserState(stance=self.stance(request, round)), texts)
        draw = Random(derive(self._seed, "feedback", request.user, str(round), request.id, *texts))
        gap = self._beta * (one.total - two.total)
        chance = 1.0 / (1.0 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1.0 + math.exp(gap))
        return (draw.random() < chance) != (draw.random() < self._noise)


def rotated(w: np.ndarray, other: np.ndarray, angle: float) -> np.ndarray:
    """`w` [D] turned by `angle` towards the part of `other` [D] that is at right angles to it; 0 stays 0."""
    length = float(np.linalg.norm(w))
    if length == 0.0:
        return w
    across = other - w * (other @ w) / length**2
    turned: np.ndarray = math.cos(angle) * w + math.sin(angle) * length * across / np.linalg.norm(across)
    return turned
