"""The nouns that parts hand to one another: frozen plain data, without torch.

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
Combine = Literal["log_linear", "forward_kl", "jensen_shannon"]
Merge = Literal["products", "factors"]
Deltas = tuple[tuple[str, float], ...]
Vector = tuple[float, ...]
# What a head makes soft tokens of: names, or vectors.
Args = tuple[str | Vector, ...]

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
class Chat:
    """A prompt segment: chat messages, turned into tokens by the policy's template."""

    messages: Messages


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt segment: token ids as they are."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Soft:
    """A prompt segment: soft tokens, the vectors that a head of the policy makes of `args` (a user's name, or what is
    known of them as vectors)."""

    head: str
    args: Args = ()


Segment = Chat | Tokens | Soft


@dataclass(frozen=True, slots=True)
class Value:
    """What a stream may read instead of log-probabilities: the number that a head of the policy, one that rates, makes
    of the answer so far with a candidate behind it. `user` is what the head is told of them, () nothing."""

    head: str
    user: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """One source of scores over the base vocabulary, with its coefficient in the plan: log-probabilities, or values.

    `model` names a further model of the policy that is the source (see `PolicySpec.model`); None is the base. Its
    tokens may be others: it speaks on the candidates alone, and never is their stream.

    `deltas` names the adapters and steering vectors that are added to the base, with coefficients; () is the base.
    `head` names a map of the last hidden state that is applied before the vocabulary (PAD's value head), or is a
    `Value`, which stands in the vocabulary's place. `merge` says how several adapters act as one: by
    sum_k c_k B_k A_k, or by their factors' sums, (sum_k c_k B_k) (sum_k c_k A_k).
    """

    prompt: tuple[Segment, ...]
    weight: float = 1.0
    deltas: Deltas = ()
    head: str | Value | None = None
    merge: Merge = "products"
    model: str | None = None

    @property
    def source(self) -> tuple[tuple[Segment, ...], Deltas, str | Value | None, Merge, str | None]:
        return (self.prompt, self.deltas, self.head, self.merge, self.model)

    @property
    def valued(self) -> bool:
        return isinstance(self.head, Value)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Which tokens may be chosen at a step: all, the k likeliest of one stream, or the plausible ones.

    `plausible` keeps {t: p(t) >= fraction * max p} of that stream (CoPe, contrastive decoding).
    """

    rule: Literal["all", "top_k", "plausible"] = "all"
    k: int = 0
    fraction: float = 0.0
    stream: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn from the combined score. Temperature 0 is greedy; top_k 0 and top_p 1 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 128
    n: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How one answer is made: score(t) = sum_j c_j log p_j(t | prompt_j, prefix) on a candidate set, where a stream
    that is `valued` has v_j(prompt_j, prefix, t) in the place of its log p_j.

    That is `combine` log_linear. The others are an f-divergence, whose reference p_0 is the candidates' stream:
    score(t) = log p(t) with p = p_0 (f')^-1(sum_j c_j f'(p_j / p_0) - Z), all p_j being those on the candidates and Z
    such that p sums to 1 (MOD, arXiv 2406.18853). The weight of p_0 itself then changes nothing.
    `score_every` = m > 1 lets all streams speak at every m-th token only; between, the candidates' stream
    speaks alone (a cheaper PAD).
    `echo` e adds to score(t), from the second step on, e times what moved the step before at which all spoke: its
    sum_j c_j log p_j(t) - log p_read(t), over the whole vocabulary, p_read being the candidates' stream (OPAD).
    An echo is for log-linear plans without values; values are read of few candidates, and have no f-divergence:
    ValueError elsewhere.
    """

    streams: tuple[Stream, ...]
    candidates: Candidates = Candidates()
    sampling: Sampling = Sampling()
    score_every: int = 1
    combine: Combine = "log_linear"
    echo: float = 0.0

    def __post_init__(self) -> None:
        if self.echo and (self.combine != "log_linear" or self.valued):
            raise ValueError("an echo is for log-linear plans without values")
        if not self.valued:
            return
        if self.candidates.rule != "top_k" or self.combine != "log_linear":
            raise ValueError("values are added to log-probabilities, on the top k candidates of a stream")
        if self.streams[self.candidates.stream].valued:
            raise ValueError("a stream of values has no likeliest tokens: let the candidates be another stream's")

    @property
    def valued(self) -> bool:
        """Whether any stream reads values, so that candidates are read one step ahead."""
        return any(stream.valued for stream in self.streams)

    def simplified(self) -> Plan:
        """Sum streams of equal source and drop those of weight zero, but never the candidates' stream."""
        read = self.streams[self.candidates.stream].source
        weights: dict[Any, float] = {}
        for stream in self.streams:
            weights[stream.source] = weights.get(stream.source, 0.0) + stream.weight
        kept = [key for key, weight in weights.items() if weight != 0.0 or key == read]
        streams = tuple(Stream(key[0], weights[key], *key[1:]) for key in kept)
        return replace(self, streams=streams, candidates=replace(self.candidates, stream=kept.index(read)))


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


@dataclass(frozen=True, slots=True)
class Rater:
    """How a head rates answers: the deltas under which it reads them, and the dimensions that a user's vector weighs,
    () where they have no names."""

    deltas: Deltas = ()
    dimensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """The names that a policy offers to a plan.

    `aligned` is what training made of the base, as deltas; the last of them, `own`, are this user's alone. `features`
    maps a dimension to the deltas of its successor feature log pihat_k (PAD, eq. 8), `vectors` to those of its steering
    vector; `corrector` makes better answers of drafts (Aligner); `heads` are names, and `raters` those that a `Value`
    may read. All of these are of the further model that `model` names, where there is one, and of the base else.
    """

    aligned: Deltas = ()
    own: Deltas = ()
    corrector: Deltas = ()
    features: Mapping[str, Deltas] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    vectors: Mapping[str, Deltas] = field(default_factory=dict)
    raters: Mapping[str, Rater] = field(default_factory=dict)
    model: str | None = None


def last_user_text(messages: Sequence[Message]) -> str:
    """The newest user turn: what retrieval asks with."""
    return next((m.content for m in reversed(messages) if m.role == "user"), "")


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
    user's true one, where known. `universal` are its universal values, and `best` is the largest true reward among all
    the samples it was chosen from, where these are asked for.
    The response's cost is that of all samples and steps which were made for it.
    `choices` are the scores of the request's choices, in their order.
    """

    request: Request
    response: Response
    truth: Score | None = None
    stance: Stance | None = None
    guide: Score | None = None
    universal: Score | None = None
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
