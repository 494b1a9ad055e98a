"""The 50 Koala prompts on which Personalized Soups and PAD are evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from personalign.contracts import Data, PositiveInt, StanceValue, UserError
from personalign.data.readers import Reader, nearest, refuse
from personalign.data.sources import find_files
from personalign.types import Event, Message, Pair, Request, Stance, UserState

REMEDY = (
    "download inference/data/koala_eval_50.json of github.com/zjuruizhechen/PAD (or data/ of "
    "github.com/joeljang/RLPHF) and give that file as data.path"
)


class Table(NamedTuple):
    """All that was read: prompts by id."""

    prompts: Mapping[str, str]
    fingerprint: str


class PSoupsEval(Data):
    """Every user asks every prompt, in the split test; there are no pairs and no answers to compare with.

    A user is a combination of preferences: it states each of them, and declares the sum of their stances.
    Preferences P1A to P3D of arXiv 2310.11564; PAD's eight unseen combinations, arXiv 2410.04070, figure 3.
    """

    provides = ("events.statement", "events.stance", "truth")
    paper = "arXiv 2310.11564; arXiv 2410.04070, figure 3"
    node = "benchmarks / personalized"

    def __init__(
        self,
        *,
        path: str,
        files: list[str] | None,
        statements: dict[str, str],
        stances: dict[str, dict[str, StanceValue]],
        users: dict[str, list[str]],
        limit: PositiveInt | None,
    ) -> None:
        self._path, self._files = path, files
        self._statements, self._stances, self._users, self._limit = statements, stances, users, limit
        self._check()

    def users(self) -> Sequence[str]:
        return tuple(self._users)

    def events(self, user: str) -> Sequence[Event]:
        stated = [
            Event(id=f"{user}/{name}", user=user, time=float(n), kind="statement",
                  payload={"text": self._statements[name]}, source="psoups_eval")
            for n, name in enumerate(self._users[user])
        ]  # fmt: skip
        stance = self._stance(user)
        if not stance:
            return stated
        declared = Event(id=f"{user}/stance", user=user, time=float(len(stated)), kind="stance",
                         payload={"stance": stance}, source="psoups_eval")  # fmt: skip
        return [*stated, declared]

    def requests(self, split: str) -> Sequence[Request]:
        if split != "test":
            return ()
        prompts = list(self._table.prompts.items())[: self._limit]
        return tuple(
            Request(id=f"{user}/{id}", user=user, messages=(Message("user", prompt),))
            for user in self._users
            for id, prompt in prompts
        )

    def pairs(self, split: str) -> Sequence[Pair]:
        return ()

    def fingerprint(self) -> str:
        return self._table.fingerprint

    def truth(self, request: Request) -> UserState | None:
        """The stance that the user declares; None where none of its preferences has one."""
        stance = self._stance(request.user)
        return UserState(stance=Stance.of(stance)) if stance else None

    def require(self, names: Sequence[str]) -> None:
        lacks = "data.stances for a preference of every user"
        if not all(self._stance(user) for user in self._users):
            refuse(names, {"truth": lacks, "events.stance": lacks}, self._path)

    def _stance(self, user: str) -> dict[str, float]:
        """The sum over the user's preferences, each dimension kept in [-1, 1]."""
        total: dict[str, float] = {}
        for name in self._users[user]:
            for dimension, value in self._stances.get(name, {}).items():
                total[dimension] = total.get(dimension, 0.0) + value
        return {dimension: max(-1.0, min(1.0, value)) for dimension, value in total.items()}

    def _check(self) -> None:
        if not self._users:
            raise UserError("data.users: name at least one user")
        blank = [name for name, text in self._statements.items() if not text.strip()]
        if blank:
            raise UserError(f"data.statements.{blank[0]}: is empty; say what this preference asks for")
        asked = {f"users.{user}": names for user, names in self._users.items()}
        for key, names in {**asked, "stances": list(self._stances)}.items():
            for name in names:
                if name not in self._statements:
                    raise UserError(f"data.{key}: no preference {name!r}{nearest(name, self._statements)}")

    @cached_property
    def _table(self) -> Table:
        reader = Reader()
        prompts: dict[str, str] = {}
        for path in find_files(self._path, self._files, on_hub="*koala_eval_50*", remedy=REMEDY):
            for row in reader.rows(path):
                id = row.label("id")
                if id and id in prompts:
                    row.wrong("id", f"{id!r} was there before")
                prompts[id] = row.text("prompt")
        settings = {name: getattr(self, f"_{name}") for name in ("statements", "stances", "users", "limit")}
        return Table(prompts, reader.finish(settings))
