"""P-Soups preference pairs with personas, as AlignX gives them for its benchmark."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from personalign.contracts import Data, Fraction, NaturalInt, PositiveInt, Reward, Sampler, Seed, StanceValue, UserError
from personalign.data.readers import Reader, Row, nearest, refuse
from personalign.data.sources import find_files
from personalign.data.splits import check_fractions, check_splits, digest, normalise, split_of
from personalign.types import Event, EventKind, Message, Pair, Request, Split, Stance, UserState

PERSONAS = ("elementary", "phd", "concise", "informative", "friendly", "unfriendly", "sassy", "sarcastic")
EARLIER = "Pair-wise Comparative Feedback"
REMEDY = "download benchmark/P-Soups of github.com/JinaLeejnl/AlignX and give that folder as data.path"


class Choice(NamedTuple):
    """A preference as the files have it."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Item:
    """A row: a choice of a persona, four earlier ones, and a profile that was inferred from those."""

    statement: str
    choice: Choice
    profile: str
    earlier: tuple[Choice, ...]


class Table(NamedTuple):
    """All that was read, by user in the order of the files."""

    events: Mapping[str, tuple[Event, ...]]
    pairs: Mapping[str, tuple[Pair, ...]]
    fingerprint: str


class AlignXPSoups(Data):
    """Personas of P-Soups as users: pairs that are split by prompt, and the persona's text as a statement.

    A persona's history is its statement, its commonest profile and up to `history` earlier choices. None of
    it comes from a validation or test prompt, and a training request whose prompt is in the history is asked
    at that moment, so that memory cannot give its answer away. Within a split, prompts are in hash order. With a
    true reward, pairs are labelled by its dimensions; personas tell their stance only where they are `declared`.
    """

    provides = (
        "events.statement",
        "events.attribute",
        "events.choice",
        "events.stance",
        "prompts",
        "pairs",
        "labels",
        "ratings",
        "truth",
    )
    paper = "arXiv 2503.15463; personas of arXiv 2310.11564"
    node = "benchmarks / personalized"

    def __init__(
        self,
        *,
        path: str,
        files: list[str] | None,
        personas: list[str] | None,
        validation: Fraction,
        test: Fraction,
        seed: Seed,
        history: NaturalInt,
        limit: PositiveInt | None,
        stances: dict[str, dict[str, StanceValue]],
        declared: bool,
    ) -> None:
        check_fractions(validation, test)
        self._path, self._files, self._personas = path, files, personas
        self._validation, self._test, self._seed = validation, test, seed
        self._history, self._limit, self._stances, self._declared = history, limit, stances, declared
        self._reward: Reward | None = None

    def bind(self, truth: Reward | None, sampler: Sampler) -> None:
        self._reward = truth

    def users(self) -> Sequence[str]:
        return tuple(self._table.events)

    def events(self, user: str) -> Sequence[Event]:
        return self._table.events[user]

    def requests(self, split: str) -> Sequence[Request]:
        return tuple({pair.request.id: pair.request for pair in self._of(split)}.values())

    def pairs(self, split: str) -> Sequence[Pair]:
        return tuple(self._labelled(pair) for pair in self._of(split))

    def _of(self, split: str) -> list[Pair]:
        return [p for pairs in self._table.pairs.values() for p in pairs if p.request.split == split]

    def _labelled(self, pair: Pair) -> Pair:
        """The pair with both answers' ratings on every dimension of the true reward, and what they differ by."""
        if self._reward is None:
            return pair
        state = self.truth(pair.request) or UserState()
        chosen, rejected = self._reward.score(pair.request, state, [pair.chosen, pair.rejected])
        both = {d: (value, rejected.dimensions[d]) for d, value in chosen.dimensions.items()}
        return replace(pair, labels={d: one - other for d, (one, other) in both.items()}, ratings=both)

    def fingerprint(self) -> str:
        return self._table.fingerprint

    def truth(self, request: Request) -> UserState | None:
        """The stance that the configuration gives the persona; None where it gives none."""
        stance = self._stances.get(request.user)
        return UserState(stance=Stance.of(stance)) if stance else None

    def require(self, names: Sequence[str]) -> None:
        lacks = {}
        if not all(self._stances.get(user) for user in self.users()):
            lacks["truth"] = "an entry of data.stances for each persona"
        if self._reward is None:
            lacks["labels"] = lacks["ratings"] = "a true reward to label pairs by (reward@truth=exact)"
        if not self._declared:
            lacks["events.stance"] = "personas that declare their stance (data.declared=true)"
        if not any(event.kind == "choice" for user in self.users() for event in self.events(user)):
            lacks["events.choice"] = "earlier choices (data.history)"
        refuse(names, lacks, self._path)

    @cached_property
    def _table(self) -> Table:
        reader = Reader()
        items: dict[str, list[Item]] = {}
        for path in find_files(self._path, self._files, on_hub="*P-Soups*", remedy=REMEDY):
            for row in reader.rows(path):
                self._take(row, items)
        fingerprint = reader.finish(self._settings())
        chosen = self._selected(items)
        pairs = {user: self._pairs(user, items[user]) for user in chosen}
        self._check(pairs)
        return Table({user: self._events(user, items[user]) for user in chosen}, pairs, fingerprint)

    def _settings(self) -> dict[str, object]:
        names = ("personas", "validation", "test", "seed", "history", "limit", "stances", "declared")
        return {name: getattr(self, f"_{name}") for name in names}

    def _take(self, row: Row, items: dict[str, list[Item]]) -> None:
        earlier = tuple(_choice(inner) for inner in row.rows(EARLIER))
        item = Item(row.text("ground_truth_persona"), _choice(row), row.text("profile"), earlier)
        same = items.setdefault(short_name(item.statement), [])
        if same and same[0].statement != item.statement:
            why = f"another persona is called {short_name(item.statement)!r} too: put them into separate runs"
            row.wrong("ground_truth_persona", why)
        same.append(item)

    def _selected(self, items: Mapping[str, object]) -> Sequence[str]:
        """The personas asked for; raises UserError for names that the files do not have."""
        _known("personas", self._personas or (), items)
        _known("stances", self._stances, {*items, *PERSONAS})
        return [user for user in items if self._personas is None or user in self._personas]

    def _check(self, pairs: Mapping[str, tuple[Pair, ...]]) -> None:
        requests = [pair.request for rows in pairs.values() for pair in rows]
        found = {request.split for request in requests}
        prompts = len({request.messages for request in requests})
        check_splits(found, {"validation": self._validation, "test": self._test}, prompts)

    def _split(self, prompt: str) -> Split:
        return split_of(prompt, validation=self._validation, test=self._test, seed=self._seed)

    def _past(self, items: Sequence[Item]) -> list[Choice]:
        """The earlier choices that become events: different ones, none on a held-out prompt, oldest first."""
        choices = {choice for item in items for choice in item.earlier}
        allowed = (choice for choice in choices if self._split(choice.prompt) == "train")
        return sorted(allowed, key=self._order)[: self._history]

    def _order(self, choice: Choice) -> tuple[str, str]:
        return digest(self._seed, choice.prompt), digest(*choice)

    def _events(self, user: str, items: Sequence[Item]) -> tuple[Event, ...]:
        clean = [i for i in items if all(self._split(c.prompt) == "train" for c in (i.choice, *i.earlier))]
        profiles = Counter(item.profile for item in clean)
        events = [_event(user, 0, "statement", {"text": items[0].statement})]
        if profiles:
            commonest = min(profiles, key=lambda text: (-profiles[text], text))
            events.append(_event(user, 0, "attribute", {"name": "profile", "value": commonest}))
        if self._declared and self._stances.get(user):
            events.append(_event(user, 0, "stance", {"stance": dict(self._stances[user])}))
        past = enumerate(self._past(items), start=1)
        return (*events, *(_event(user, time, "choice", choice._asdict()) for time, choice in past))

    def _pairs(self, user: str, items: Sequence[Item]) -> tuple[Pair, ...]:
        choices = sorted({item.choice for item in items}, key=self._order)
        past = [normalise(choice.prompt) for choice in self._past(items)]
        requests = {
            prompt: Request(
                id=f"{user}/{digest(prompt)}",
                user=user,
                messages=(Message("user", prompt),),
                time=past.index(normalise(prompt)) + 1.0 if normalise(prompt) in past else float("inf"),
                references=tuple(choice.chosen for choice in choices if choice.prompt == prompt),
                split=self._split(prompt),
            )
            for prompt in self._limited(dict.fromkeys(choice.prompt for choice in choices))
        }
        return tuple(
            Pair(id=f"{user}/{digest(*c)}", request=requests[c.prompt], chosen=c.chosen, rejected=c.rejected)
            for c in choices
            if c.prompt in requests
        )

    def _limited(self, prompts: Iterable[str]) -> list[str]:
        """The first `limit` prompts of each split."""
        seen: Counter[Split] = Counter()
        kept = []
        for prompt in prompts:
            seen[self._split(prompt)] += 1
            if self._limit is None or seen[self._split(prompt)] <= self._limit:
                kept.append(prompt)
        return kept


def short_name(persona: str) -> str:
    """The persona's name: the first word of its text that names one of P-Soups', else all of its words."""
    words = re.findall(r"\w+", persona.casefold())
    return next((word for word in words if word in PERSONAS), "_".join(words)[:40])


def _choice(row: Row) -> Choice:
    choice = Choice(row.text("prompt"), row.text("chosen"), row.text("rejected"))
    if choice.chosen and choice.chosen == choice.rejected:
        row.wrong("rejected", "is the same text as chosen")
    return choice


def _event(user: str, time: int, kind: EventKind, payload: Mapping[str, object]) -> Event:
    id = f"{user}/{digest(kind, *map(str, payload.values()))}"
    return Event(id=id, user=user, time=float(time), kind=kind, payload=payload, source="alignx_psoups")


def _known(key: str, asked: Iterable[str], names: Iterable[str]) -> None:
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise UserError(f"data.{key}: no persona {unknown[0]!r} in the files{nearest(unknown[0], names)}")
