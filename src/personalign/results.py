"""What is measured of answers, and the figures that evaluation makes of it: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from personalign.types import Pair, Request, Response, Score, Stance


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """What the system's plan makes of one choice of a request: log p(choice | prompt) in nats, without an end of text,
    and in how many tokens. For a log-linear plan of several streams it is their score, without its normaliser."""

    logprob: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One answer with all that was measured on it; the input of evaluation.

    `base_nll` is the summed negative log-probability of the answer's tokens under the untouched base model on
    the plain prompt, in nats over `base_tokens` tokens (fluency); None where they are not known. `stance` is the
    user's true one, where known. `universal` are its universal values, and `worst` and `best` are the least and the
    largest true reward among all the samples it was chosen from, where these are asked for. A refusal has no `truth`.
    The response's cost is that of all samples and steps which were made for it.
    `choices` are the scores of the request's choices, in their order.
    """

    request: Request
    response: Response
    truth: Score | None = None
    stance: Stance | None = None
    guide: Score | None = None
    universal: Score | None = None
    worst: float | None = None
    best: float | None = None
    base_nll: float | None = 0.0
    base_tokens: int = 0
    choices: tuple[ChoiceScore, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """A held-out pair with the system's margin, guide(chosen) - guide(rejected); a tie counts one half."""

    pair: Pair
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A base answer's length in words and its true reward: what controls a reward for length."""

    user: str
    words: int
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a table: mean over users, bootstrap interval by user, how many users and items."""

    value: float
    low: float
    high: float
    n: int
    users: int
    better: Literal["higher", "lower", "none"] = "higher"
