"""The nouns that parts hand to one another: frozen plain data, without torch. How an answer is made is in `plans`, what
is measured of it in `results`.

Names follow the survey (arXiv 2503.17003, sections 3 and 4) and PAD (arXiv 2410.04070).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

EventKind = Literal["text", "choice", "rating", "statement", "stance", "attribute"]
Role = Literal["system", "user", "assistant"]
Split = Literal["train", "validation", "test"]
StopReason = Literal["eos", "length", "refused"]
Vector = tuple[float, ...]
EVENT_KINDS: tuple[str, ...] = get_args(EventKind)
# The fields of an event's payload, by its kind.
PAYLOADS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "statement": ("text",),
    "choice": ("prompt", "chosen", "rejected"),
    "rating": ("prompt", "response", "rating"),
    "stance": ("stance",),
    "attribute": ("name", "value"),
}
SPLITS: tuple[str, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. `content` is plain text: it can never forge a template token."""

    role: Role
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that a user did; taking the same id in twice changes nothing.

    `payload` has the fields that PAYLOADS names; a stance is {dimension: value in [-1, 1]}.
    """

    id: str
    user: str
    time: float
    kind: EventKind
    payload: Mapping[str, Any]
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user asks at a time. Recall sees only events before `time`, never the references.

    `choices` are all the answers that can be right, of which the references are: labels, or options.
    """

    id: str
    user: str
    messages: Messages
    time: float = float("inf")
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    context: Mapping[str, str] = field(default_factory=dict)
    split: Split = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A preference of `request.user`: `chosen` over `rejected`.

    `labels` holds, per dimension d, r_d(chosen) - r_d(rejected) where it is known, and `ratings` the two themselves,
    (r_d(chosen), r_d(rejected)), where each is known by itself.
    """

    id: str
    request: Request
    chosen: str
    rejected: str
    labels: Mapping[str, float] = field(default_factory=dict)
    ratings: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def swapped(self) -> Pair:
        """The same two answers, the other one chosen."""
        return replace(
            self,
            chosen=self.rejected,
            rejected=self.chosen,
            labels={d: -label for d, label in self.labels.items()},
            ratings={d: (rejected, chosen) for d, (chosen, rejected) in self.ratings.items()},
        )


@dataclass(frozen=True, slots=True)
class Stance:
    """p^u of the survey, section 4.1: named dimensions, mean in [-1, 1], covariance when it was inferred."""

    dimensions: tuple[str, ...]
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...] | None = None

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Stance:
        return cls(tuple(values), tuple(float(v) for v in values.values()))

    def as_dict(self) -> dict[str, float]:
        return dict(zip(self.dimensions, self.mean, strict=True))

    def dot(self, ratings: Mapping[str, float]) -> float:
        """R_u(y|c) = (p^u)^T r(y|c); a dimension without a rating counts as neutral."""
        return sum(p * ratings.get(d, 0.0) for d, p in self.as_dict().items())


@dataclass(frozen=True, slots=True)
class Snippet:
    """A recalled text, with the event and the user it came from; `weight` is how much it counts for this user, 1 where
    nobody has inferred that."""

    text: str
    event: str
    owner: str
    score: float = 0.0
    payload: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UserState:
    """What memory knows of a user that matters for one request; every field may be absent.

    `targets` are the ratings that the user wants the answer to have, by dimension; alignment that learns in hindsight
    asks for what an answer has (see `Render`). `history` are the user's past texts as vectors of one encoder, oldest
    first; `vectors` are single ones, by name.
    """

    snippets: tuple[Snippet, ...] = ()
    profile: str | None = None
    stance: Stance | None = None
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    history: tuple[Vector, ...] = ()
    targets: Mapping[str, float] | None = None

    def merged(self, later: UserState) -> UserState:
        """Combine two memories in order: snippets append, profiles line by line; else the later value wins."""
        profiles = [profile for profile in (self.profile, later.profile) if profile is not None]
        return UserState(
            snippets=self.snippets + later.snippets,
            profile="\n".join(profiles) if profiles else None,
            stance=later.stance if later.stance is not None else self.stance,
            vectors={**self.vectors, **later.vectors},
            history=later.history or self.history,
            targets=later.targets if later.targets is not None else self.targets,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """What an answer took: tokens that its streams read through the network, generated tokens, seconds.

    `forward_tokens` are those of the answer by itself, so that methods compare in any company. Of them `reused_tokens`
    were not fed for it: their keys and values were there, of the same prompt (another sample's) or of a beginning that
    prompts share. What was fed is the difference.
    """

    forward_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    reused_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forward_tokens + other.forward_tokens,
            self.new_tokens + other.new_tokens,
            self.seconds + other.seconds,
            self.reused_tokens + other.reused_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer to one request. Token ids and log-probs exclude the prompt and include the end of text.

    `score` is what the guide makes of it, for a workflow that is to see that (`Generation.watched`).
    """

    request: str
    text: str
    sample: int = 0
    round: int = 0
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    stop: StopReason = "eos"
    cost: Cost = Cost()
    score: Score | None = None

    @property
    def refused(self) -> bool:
        """Whether it stands for that none was given."""
        return self.stop == "refused"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Response:
        score = Score(**row["score"]) if row.get("score") else None
        values = {**row, "tokens": tuple(row["tokens"]), "logprobs": tuple(row["logprobs"]), "score": score}
        return cls(**{**values, "cost": Cost(**row["cost"])})


@dataclass(frozen=True, slots=True)
class Score:
    """The reward of one response for one user, and its ratings per dimension (larger is more of it)."""

    total: float
    dimensions: Mapping[str, float] = field(default_factory=dict)

    def meets(self, floors: Mapping[str, float]) -> bool:
        """v_k >= tau_k for every floor tau_k (survey, section 3.2); KeyError for a value that was not scored."""
        return all(self.dimensions[name] >= floor for name, floor in floors.items())


def last_user_text(messages: Sequence[Message]) -> str:
    """The newest user turn: what retrieval asks with."""
    return next((m.content for m in reversed(messages) if m.role == "user"), "")
