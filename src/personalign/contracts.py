"""What each kind of part promises. A part is one class here-derived and one YAML file; parts never import each other.

A part states, as literal class attributes that are read from its source without importing it:
`needs` and `provides` (names that must have been provided earlier on the way), `paper` and `node`
(its place in the survey's Figure 4). Its keyword arguments are its YAML keys; their annotations are
checked before anything heavy is imported, so they are built from the names in this module alone. A number is finite
unless its type is `Bound`.
Keys that several parts share may be a TypedDict: `**rest: Unpack[Keys]`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, Lt, MinLen, Predicate
from pydantic import AllowInfNan

from personalign.plans import Plan, PolicySpec, Sampling
from personalign.results import Calibration, Figure, Judged, JudgedPair
from personalign.types import Event, Messages, Pair, Request, Response, Score, UserState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


def is_open(url: str) -> bool:
    """Whether it is an address of http(s) that holds nothing secret: no user, no password, no query, no blanks."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    plain = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"
    return parts.scheme in ("http", "https") and plain.lower() == url.lower() and is_printable(url)


def is_printable(text: str) -> bool:
    """Whether it is ASCII without blanks."""
    return all("!" <= character <= "~" for character in text)


PositiveInt = Annotated[int, Ge(1)]
SeveralInt = Annotated[int, Ge(2)]
NaturalInt = Annotated[int, Ge(0)]
# As large as torch takes.
Seed = Annotated[int, Ge(0), Le(2**64 - 1)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveFraction = Annotated[float, Gt(0), Le(1)]
FractionBelowOne = Annotated[float, Ge(0), Lt(1)]
OpenFraction = Annotated[float, Gt(0), Lt(1)]
# Infinity is one, too: no bound at all.
Bound = Annotated[float, AllowInfNan(True), Ge(-math.inf)]
Name = Annotated[str, MinLen(1)]
Names = Annotated[list[Name], MinLen(1)]
OpenUrl = Annotated[str, Predicate(is_open)]
StanceValue = Annotated[float, Ge(-1), Le(1)]
TextKind = Literal["text", "statement", "choice", "rating", "attribute"]
Placement = Literal["system", "user"]

# What memory recalls for each of some requests.
Recall = Callable[[Sequence[Request]], list[UserState]]
# `sampling.n` answers of the base model to each request, drawn as `sampling` says.
Sampler = Callable[[Sequence[Request], Sampling], list[list[str]]]


class Render(Protocol):
    """The prompt that generation makes of a request for its user; with `targets`, as if they wanted these ratings; with
    `draft`, that which asks to correct this answer, or, with `equal`, to make another one that is its equal in these
    dimensions."""

    def __call__(
        self,
        request: Request,
        targets: Mapping[str, float] | None = None,
        draft: str | None = None,
        equal: Sequence[str] = (),
    ) -> Messages: ...


class UserError(Exception):
    """Something that the user can put right: shown as one or two plain lines, exit status 2."""


class Part:
    """What every part declares. Names of needs and provides:

    `events.<kind>`, `prompts` (requests to train on), `pairs`, `labels` (pairs with labels per dimension), `ratings`
    (pairs with both answers' ratings), `truth` (true stances) from data;
    `model`, which answers chats, and `model.weights`, where it is here and all that it thinks can be read, from model;
    `state.<field>` from memory, `state.vectors.<name>` for one of its vectors, `state.posterior` where its stance has
    a covariance; `policy.aligned`, `policy.own` (adapters of single users), `policy.features`, `policy.vectors`,
    `policy.corrector`, `policy.heads.<name>` from alignment;
    `prompt.targets` (wanted ratings in what it renders), `prompt.draft` (it has a `correction`), `prompt.equal` (and an
    `equalisation`), `plan.guide_model` (what training makes is a guide, which may be a further model) from generation;
    `plan`, generation's, when all that it is made of is trained: a reward that reads it needs it;
    `reward.truth`, `reward.guide`, `reward.universal` from the reward that is chosen under that name.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = ""
    node: ClassVar[str] = ""


class Data(Part, ABC):
    """Users, their histories, what they ask and what they prefer."""

    def bind(self, truth: Reward | None, sampler: Sampler) -> None:
        """Take the reward that labels pairs, and a sampler of base answers for data that need some."""

    @abstractmethod
    def users(self) -> Sequence[str]: ...

    @abstractmethod
    def events(self, user: str) -> Sequence[Event]: ...

    @abstractmethod
    def requests(self, split: str) -> Sequence[Request]: ...

    @abstractmethod
    def pairs(self, split: str) -> Sequence[Pair]: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """A content hash of everything that is read: it goes into the run's identity and its record."""

    def require(self, names: Sequence[str]) -> None:
        """Raise UserError for a name that `provides` promises and these files or settings lack."""

    def truth(self, request: Request) -> UserState | None:
        """The user's true state, for labelling and evaluation only; None where nobody knows it."""
        return None


class Belief(NamedTuple):
    """A user's w in P(y1 > y2) = sigma(w^T (r(y1) - r(y2))) as N(mean, covariance), and the ratings r of some texts.

    `mean` [D] and `covariance` [D, D] are in log odds for each unit of rating, without bounds; `ratings` [n, D].
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    ratings: NDArray[np.float64]


class Memory(Part, ABC):
    """What is kept, inferred and recalled of a user (survey 4.1)."""

    @abstractmethod
    def observe(self, event: Event) -> None: ...

    @abstractmethod
    def recall(self, request: Request, policy: Policy | None) -> UserState:
        """What is known of `request.user` from events before `request.time`."""

    def recall_all(self, requests: Sequence[Request], policy: Policy | None) -> list[UserState]:
        """Many requests at once; a memory that runs a network batches them."""
        return [self.recall(request, policy) for request in requests]

    @abstractmethod
    def forget(self, user: str) -> None: ...

    def belief(self, request: Request, texts: Sequence[str]) -> Belief | None:
        """What is believed of `request.user` before `request.time`, and how it rates the texts; a memory that provides
        `state.posterior` answers, another one has None."""
        return None


class Generation(Part, ABC):
    """How an answer is made for a user (survey 4.2): pure functions from plain data to a plan.

    To one that is `watched` and needs `reward.guide`, `next` and `answers` are shown responses with their `score`: what
    the guide, told what memory recalled, makes of each by itself.
    """

    watched: ClassVar[bool] = False
    # Its keyword argument that says how strongly it heeds the user, which `tune` may choose; '' where there is none.
    # What it renders does not depend on it.
    strength: ClassVar[str] = ""
    # Its keyword argument that says how many candidates there are, where null there is the whole vocabulary. A further
    # model has tokens of its own and speaks on candidates alone, so that it needs a number.
    candidates: ClassVar[str] = ""

    @abstractmethod
    def render(self, request: Request, state: UserState) -> Messages:
        """The prompt; alignment trains on it, and the plan uses it."""

    def correction(self, request: Request, state: UserState, draft: str) -> Messages:
        """The prompt that asks to make a better answer of a draft; what provides `prompt.draft` has one."""
        raise NotImplementedError

    def equalisation(self, request: Request, draft: str, dimensions: Sequence[str]) -> Messages:
        """The prompt that asks to make an answer that is a draft's equal in some dimensions; what provides
        `prompt.equal` has one."""
        raise NotImplementedError

    @abstractmethod
    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan: ...

    def first(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        """The first step of a workflow: the plan, unless something comes before an answer is made. The plan alone is
        what answers are scored by."""
        return self.plan(request, state, spec)

    def next(self, request: Request, state: UserState, responses: Sequence[Response], spec: PolicySpec) -> Plan | None:
        """A further plan for workflows that refine; None when the answer stands.

        `responses` are those of one sample so far, in order: every sample goes its own way.
        """
        return None

    def answers(self, responses: Sequence[Response]) -> Sequence[Response]:
        """Of what one sample wrote that which could be given, the best first: the answer that it came to, and behind it
        what is given in its place where the boundary does not admit it."""
        return responses[-1:]

    def final(self, responses: Sequence[Response]) -> Response:
        """The answer that one sample came to: of its answers the one that meets the guide and `select`, if it is
        admitted."""
        return self.answers(responses)[0]

    def select(self, admitted: Sequence[Response], scores: Sequence[Score] | None) -> Response:
        """The one answer that is given, from the samples' answers that the boundary admitted."""
        return admitted[0]


class Reward(Part, ABC):
    """How answers are scored for a user (survey 4.2). Under `guide` it is given what memory recalled,
    under `truth` the user's true state, under `universal` no state, since what it rates there holds for everyone:
    the same class, three sources, kept apart by the experiment."""

    def bind(self, policy: Policy | None, plan: Callable[[Request], Plan]) -> None:
        """Take the policy that the reward reads, and how the system would plan a request. There is a policy for
        one that needs `model.weights`, or what training made."""

    def content(self, request: Request, state: UserState) -> object:
        """Plain data on which, beside its settings and the policy, the scores for a request depend."""
        return state

    @abstractmethod
    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]: ...

    def score_all(self, asked: Sequence[tuple[Request, UserState, Sequence[str]]]) -> list[list[Score]]:
        """Many requests at once; a reward that runs a network batches them."""
        return [self.score(*one) for one in asked]


@dataclass(frozen=True, slots=True)
class Guide:
    """The reward under `guide` as a stage uses it: told what memory recalled of each user, never the truth.

    `score` rates texts for their requests; `content` is plain data that, with the policy, determines these scores.
    """

    score: Callable[[Sequence[tuple[Request, Sequence[str]]]], list[list[Score]]]
    content: Callable[[Sequence[Request]], object]


class Stage(Part, ABC):
    """One step of alignment (survey 4.3), from policy to policy, resumable."""

    def bind(self, guide: Guide | None, recall: Recall) -> None:
        """Take the guide, for a stage that needs `reward.guide`, and `recall`, for one that needs a `state`."""

    @abstractmethod
    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        """Train on the prompts that generation will render; write adapters and heads by name; return figures."""


class Boundary(Part, ABC):
    """The universal values that personal preferences may not cross (survey 3.2)."""

    @abstractmethod
    def shape(self, plan: Plan) -> Plan: ...

    @abstractmethod
    def admit(
        self, request: Request, responses: Sequence[Response], scores: Sequence[Score] | None
    ) -> Sequence[Response]:
        """The responses that may be given; empty means refuse. `scores` holds the universal values of each response
        by name, for a boundary that needs `reward.universal`."""


class Feedback(Part, ABC):
    """Who answers what is asked of users, and turns it into events (survey 4.3)."""

    def bind(self, data: Data, truth: Reward | None) -> None:
        """Take the data that know the users, and the reward that knows what they like."""

    @abstractmethod
    def events(self, request: Request, responses: Sequence[Response]) -> Sequence[Event]:
        """What the user does when shown the responses, which are of one round."""

    def truth(self, request: Request, round: int) -> UserState | None:
        """The user's true state in a round, for evaluation only; None where that of the data holds in every round."""
        return None


class Query(Part, ABC):
    """What is asked of a user (survey 4.3): which pair of answers to compare next.

    What is known of the user is N(mean, covariance) over w, the weights of P(y1 > y2) = sigma(w^T x) with
    x = r(y1) - r(y2). Pairs of equal ratings, x = 0, are asked only where there are no others.
    """

    @abstractmethod
    def choose(
        self,
        user: str,
        round: int,
        differences: NDArray[np.float64],
        mean: NDArray[np.float64],
        covariance: NDArray[np.float64],
    ) -> int:
        """The row of `differences` [n, D], n >= 1, to ask; of equally good ones the first.

        `mean` [D] and `covariance` [D, D] are in log odds for each unit of rating. `round` tells
        the user's questions apart: it counts them where a round has several. No earlier call matters.
        """


class Evaluation(Part, ABC):
    """How the answers of one run are measured; several rewards and texts at once."""

    @abstractmethod
    def measure(
        self, answers: Sequence[Judged], pairs: Sequence[JudgedPair], calibration: Sequence[Calibration]
    ) -> dict[str, Figure]:
        """The figures by name; one whose inputs are missing is left out, never zero."""

    @abstractmethod
    def average(self, values: Sequence[tuple[str, float]], better: Literal["higher", "lower"]) -> Figure:
        """The mean over users of what is known of each, as (user, value), with an interval as in `measure`; n = 0 of
        nothing."""
