"""The event store: what goes in comes out for its user alone, once and whole, and nothing is left of the forgotten."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personalign import cli
from personalign.contracts import UserError
from personalign.store import database
from personalign.store.store import Store
from personalign.types import EVENT_KINDS, Event


def event(id: str = "e", user: str = "ana", time: float = 1.0, text: str = "x") -> Event:
    return Event(id=id, user=user, time=time, kind="text", payload={"text": text})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "users.db", create=True) as made:
        yield made


# What goes in comes out.


def test_events_come_back_as_they_were_oldest_first(store: Store, tmp_path: Path) -> None:
    stance = {"z": -0.1, "a": 1 / 3}
    mine = [
        event("1", time=-5.5, text="näïve \U0001f600 'quoted\"; DROP TABLE events; --\0\n<|im_end|>"),
        Event(id="2", user="ana", time=2, kind="stance", payload={"stance": stance}, source="a form"),
        event("3", time=1e300),
        event("4", time=1e300),
    ]
    assert store.add([mine[3], mine[1], event("5", "ben"), mine[2], mine[0]]) == 5
    store.close()
    with Store(tmp_path / "users.db") as again:
        assert again.events("ana") == mine
        assert list(again.events("ana")[1].payload["stance"]) == list(stance)
        assert again.users() == ["ana", "ben"]


texts = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=8)
names = texts.filter(str.strip)
numbers = itertools.count()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(names, names, st.floats(allow_nan=False, allow_infinity=False), texts),
        max_size=12,
        unique_by=lambda row: row[0],
    )
)
def test_no_user_sees_anothers_events(tmp_path: Path, rows: list[tuple[str, str, float, str]]) -> None:
    """Against a plain dictionary; names differ in case, accents, blanks and wildcards."""
    events = [event(*row) for row in rows]
    with Store(tmp_path / f"{next(numbers)}.db", create=True) as made:
        made.add(events)
        assert made.users() == sorted({e.user for e in events})
        for user in ["ana", "", "%", "_", "*", *made.users()]:
            mine = [e for e in events if e.user == user]
            assert made.events(user) == sorted(mine, key=lambda e: (e.time, e.id))


@pytest.mark.parametrize("twin", ["Ana", "ana ", "a\u0301na", "an%", "ana\0"])
def test_users_whose_names_are_almost_equal(store: Store, twin: str) -> None:
    store.add([event("1", "ana"), event("2", twin)])
    assert [e.user for e in store.events("ana")] == ["ana"]
    assert store.forget(twin) == 1
    assert len(store.events("ana")) == 1


# Once, and whole.


def test_recall_searches_one_user_alone(store: Store) -> None:
    """Through the index, whose leaves hold the events: no other user's row is read."""
    query = "EXPLAIN QUERY PLAN SELECT * FROM events WHERE user = ? ORDER BY time, id"
    assert [row[3] for row in store._db.execute(query, ("ana",))] == ["SEARCH events USING PRIMARY KEY (user=?)"]


def test_an_event_that_is_known_changes_nothing(store: Store) -> None:
    events = [event(str(n), user) for n, user in enumerate(["ana", "ben"] * 3)]
    assert store.add([*events, *events]) == 6
    before = store.revision()
    assert store.add(events) == 0
    assert store.revision() == before
    assert store.add([event("9")]) == 1
    assert store.revision() != before
    assert store.totals()[:2] == (2, 7)


@pytest.mark.parametrize(
    "other",
    [
        event(text="y"),
        event(time=2.0),
        event(user="ben"),
        Event(id="e", user="ana", time=1, kind="statement", payload={"text": "x"}),
        Event(id="e", user="ana", time=1, kind="text", payload={"text": "x"}, source="y"),
    ],
)
def test_one_id_for_two_events(store: Store, other: Event) -> None:
    store.add([event()])
    with pytest.raises(UserError, match=r"users.db: event 'e' was there before with another content") as caught:
        store.add([event("f"), other])
    assert "x" not in str(caught.value).partition("users.db")[2].replace("another", "")
    assert store.events("ana") == [event()]
    assert store.users() == ["ana"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (event(id=" "), "needs an id and a user"),
        (event(user=""), "needs an id and a user"),
        (event(time=float("nan")), "finite number"),
        (event(time=float("inf")), "finite number"),
        (event(text="\ud800"), "whole Unicode"),
        (event(user="\ud800"), "whole Unicode"),
        (Event(id="e", user="ana", time=1, kind="text", payload={"text": ("a", "b")}), "plain JSON"),
        (Event(id="e", user="ana", time=1, kind="text", payload={"text": float("nan")}), "plain JSON"),
        (Event(id="e", user="ana", time=1, kind="choice", payload={"text": "a"}), "choice is prompt, chosen, rejected"),
        (Event(id="e", user="ana", time=1, kind="text", payload={"text": "a", "id": "b"}), "payload of a text is text"),
        (Event(id="e", user="ana", time=1, kind="poem", payload={}), f"kind must be one of {EVENT_KINDS[0]}"),  # type: ignore[arg-type]
    ],
)
def test_an_event_that_would_not_come_back(store: Store, bad: Event, why: str) -> None:
    with pytest.raises(UserError, match=f"cannot be kept: .*{why}"):
        store.add([event("first"), bad])
    assert store.users() == []


# Nothing is left of the forgotten.


def found(folder: Path, *markers: str) -> set[str]:
    """The markers that are somewhere in the bytes of the folder's files."""
    data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return {marker for marker in markers if marker.encode() in data}


def history(user: str, draw: random.Random) -> list[Event]:
    """Texts of a few bytes up to many pages, the user's marker all through them."""
    sizes = [1, 5, 40, 300, 4000, 60_000]
    return [
        event(f"{user}-id-{n}", user, draw.random(), f"{user}-text " * draw.choice(sizes))
        for n in range(draw.randint(5, 40))
    ]


@pytest.mark.parametrize("seed", range(6))
def test_not_one_byte_is_left_of_a_forgotten_user(tmp_path: Path, seed: int) -> None:
    """Two connections write by turns, both stay open, and the log still holds what they wrote."""
    draw = random.Random(seed)
    people = [f"user{n}mark{draw.getrandbits(64):x}" for n in range(5)]
    histories = {user: history(user, draw) for user in people}
    queue = [e for events in histories.values() for e in events]
    draw.shuffle(queue)
    path = tmp_path / "users.db"
    with Store(path, create=True) as one, Store(path) as two:
        while queue:
            size = draw.randint(1, 9)
            draw.choice((one, two)).add(queue[:size])
            del queue[:size]
            two.events(people[0])
        assert found(tmp_path, *people) == set(people)
        left = list(people)
        for gone in draw.sample(people, 3):
            left.remove(gone)
            two.events(gone)
            assert one.forget(gone) == len(histories[gone])
            assert found(tmp_path, *people) == set(left)
            for user in left:
                assert two.events(user) == sorted(histories[user], key=lambda e: (e.time, e.id))
            assert two.events(gone) == []
            two.add([event(f"late{gone[:5]}", left[0], 2.0)])
            histories[left[0]].append(event(f"late{gone[:5]}", left[0], 2.0))
    assert found(tmp_path, *people) == set(left)
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_forgetting_says_when_a_reader_keeps_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.05)
    path = tmp_path / "users.db"
    with Store(path, create=True) as made, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        made.add([event(text="marker"), event("b", "ben")])
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM events").fetchall()
        with pytest.raises(UserError, match=r"still holds it\nthe user's events are deleted, .*: forget again"):
            made.forget("ana")
        assert made.events("ana") == []
        reader.execute("COMMIT")
        assert made.forget("ana") == 0
        assert found(tmp_path, "marker", "ana") == set()


def test_forgetting_while_others_write(tmp_path: Path) -> None:
    """They also copy the log into the file now and then, which SQLite does not wait for."""
    over = threading.Event()

    def write(user: str) -> int:
        added = 0
        with Store(tmp_path / "users.db") as mine:
            while not over.is_set():
                mine.add(event(f"{user}-{added + k}", user, k, "other " * 40 * k) for k in range(20))
                added += 20
                time.sleep(0.002)  # SQLite is not fair: who asks in a row is served in a row
        return added

    with Store(tmp_path / "users.db", create=True) as made, ThreadPoolExecutor(2) as writers:
        writing = {user: writers.submit(write, user) for user in ("ben", "cem")}
        try:
            for n in range(6):
                user = f"marker{n}q"
                made.add(history(user, random.Random(n)))
                assert made.forget(user) > 0
                assert found(tmp_path, user) == set()
        finally:
            over.set()
        written = {user: job.result() for user, job in writing.items()}
        assert {user: len(made.events(user)) for user in writing} == written


def test_forgetting_nobody(store: Store) -> None:
    store.add([event()])
    before = store.revision()
    assert store.forget("anna") == 0
    assert store.events("ana") == [event()]
    assert store.revision() == before
    assert store.forget("ana") == 1
    assert store.totals()[:2] == (0, 0)
    assert store.add([event()]) == 1


# Several processes.


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Four processes import forty files into a store that does not exist yet."""
    files = []
    for n in range(40):
        lines = [{"user": f"u{n % 3}", "kind": "text", "time": i, "text": f"{n} {i}"} for i in range(5)]
        files.append(tmp_path / f"{n}.jsonl")
        files[-1].write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    commands = [["memory", "import", str(file), "--store", str(tmp_path / "new" / "users.db")] for file in files]
    with get_context("spawn").Pool(4) as pool:
        assert pool.map(cli.main, commands, chunksize=1) == [0] * 40
    with Store(tmp_path / "new" / "users.db") as made:
        assert made.totals()[:2] == (3, 200)
        assert {e.payload["text"] for u in made.users() for e in made.events(u)} == {
            f"{n} {i}" for n in range(40) for i in range(5)
        }


WRITER = """
import itertools, sys, time
from personalign.store.store import Store
from personalign.types import Event

def events(batch):
    for n in range(400):
        yield Event(id=f"{batch}-{n}", user="ana", time=n, kind="text", payload={"text": "long " * 2000})
        if batch == 1 and n == 300:
            print("in the middle", flush=True)
            time.sleep(60)

store = Store(sys.argv[1], create=True)
for batch in range(2):
    store.add(events(batch))
"""


def test_a_process_killed_in_the_middle_leaves_whole_additions(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "in the middle\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert found(tmp_path, "1-300") or path.with_name("users.db-wal").stat().st_size > 5_000_000, "it was half written"
    with Store(path) as left:
        assert {e.id for e in left.events("ana")} == {f"0-{n}" for n in range(400)}
        assert all(e.payload["text"] == "long " * 2000 for e in left.events("ana"))
        assert left.add([event("new")]) == 1
        assert left.forget("ana") == 401
    assert found(tmp_path, "ana", "long ") == set()
