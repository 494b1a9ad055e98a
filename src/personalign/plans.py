"""How an answer is made, as plain data: the plan that generation hands to the decoder, and the names that a policy
offers to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from personalign.types import Messages, Vector

Combine = Literal["log_linear", "forward_kl", "jensen_shannon"]
Merge = Literal["products", "factors"]
Deltas = tuple[tuple[str, float], ...]
# What a head makes soft tokens of: names, or vectors.
Args = tuple[str | Vector, ...]


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
    sum_k c_k B_k A_k, or by their factors' means, c (sum_k s_k B_k) (sum_k s_k A_k), c = sum_k |c_k| and s_k = c_k / c.
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
