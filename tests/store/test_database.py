"""Every way in which a store's file cannot be used is one plain error that names the file and the remedy."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from personalign.contracts import UserError
from personalign.store import database
from personalign.store.store import Store
from personalign.types import Event


def events(n: int, text: str = "secret words") -> list[Event]:
    return [Event(id=str(i), user="ana", time=i, kind="text", payload={"text": text}) for i in range(n)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one event."""
    with Store(tmp_path / "users.db", create=True) as made:
        made.add(events(1))
    return tmp_path / "users.db"


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def refused(path: Path, *words: str, create: bool = False) -> None:
    with pytest.raises(UserError) as caught:
        Store(path, create=create)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert all(word in said for word in (str(path), *words)), said


@pytest.mark.parametrize("content", [b"a text, no database at all", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    for create in (True, False):
        refused(tmp_path / "x", "it is no database", "personalign memory import", create=create)
    assert (tmp_path / "x").read_bytes() == content


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    change(tmp_path / "x", "CREATE TABLE mine (a)")
    before = (tmp_path / "x").read_bytes()
    for create in (True, False):
        refused(tmp_path / "x", "but no event store", create=create)
    assert (tmp_path / "x").read_bytes() == before


def test_an_empty_file_becomes_a_store_when_one_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    refused(tmp_path / "x", "but no event store")
    with Store(tmp_path / "x", create=True) as made:
        assert made.add(events(3)) == 3


def test_a_store_of_a_newer_schema(path: Path) -> None:
    change(path, f"PRAGMA user_version = {database.SCHEMA + 1}")
    for create in (True, False):
        refused(path, "a newer personalign", "update", create=create)


def test_places_where_no_store_can_be(path: Path) -> None:
    refused(path.parent, "may not be opened")
    refused(path.with_name("nowhere.db"), "no such store", "personalign memory import")
    refused(path / "below", "no such store")
    with pytest.raises(UserError, match="a part of its path is a file"):
        Store(path / "below" / "x", create=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_may_not_be_written(path: Path) -> None:
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        with pytest.raises(UserError, match="permissions"):
            Store(path).add(events(2))
    finally:
        path.parent.chmod(0o700)


def test_a_store_that_is_read_only(path: Path) -> None:
    with Store(path) as made:
        made._db.execute("PRAGMA query_only = ON")
        with pytest.raises(
            UserError, match=r"cannot add events to .*users.db: it is read-only; change its permissions"
        ):
            made.add(events(2))
        with pytest.raises(UserError, match=r"cannot forget a user in .*users.db: it is read-only"):
            made.forget("ana")


def test_a_full_disk_keeps_what_was_there(path: Path) -> None:
    with Store(path) as made:
        made._db.execute("PRAGMA max_page_count = 20")
        with pytest.raises(UserError, match=r"cannot add events to .*users.db: the disk is full; free some space"):
            made.add(events(1000))
        assert made.events("ana") == events(1)
        assert made.add(events(2)) == 1


LIMITED = """
import resource, signal, sys
from personalign.contracts import UserError
from personalign.store.store import Store
from personalign.types import Event
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
store = Store(sys.argv[1])
try:
    store.add(Event(id=f"x{n}", user="ana", time=n, kind="text", payload={"text": "x" * 5000}) for n in range(2000))
except UserError as error:
    print(error)
print(len(store.events("ana")))
"""


def test_a_file_size_limit(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.splitlines()
    assert f"cannot add events to {path}: the disk" in said
    assert left == "1"


def test_a_damaged_store(path: Path) -> None:
    with Store(path) as made:
        made.add(events(500))
        made.forget("nobody")
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"users.db: it is damaged; import your last export"), Store(path) as made:
        made.events("ana")


def test_a_store_that_another_process_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.05)
    with Store(path) as made, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert made.events("ana") == events(1)
        with pytest.raises(UserError, match="another process has held it for too long; try again"):
            made.add(events(2))
        other.execute("ROLLBACK")
        assert made.add(events(2)) == 1


def test_what_is_committed_is_safe_and_what_is_deleted_is_zeroed(path: Path) -> None:
    with Store(path) as made:
        settings = {name: database._pragma(made._db, name) for name in ("synchronous", "secure_delete")}
        assert settings == {"synchronous": 2, "secure_delete": 1}
        assert made._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_names_that_nothing_can_have(path: Path) -> None:
    with (
        Store(path) as made,
        pytest.raises(UserError, match=r"cannot forget a user in .*: the name is no whole Unicode text"),
    ):
        made.forget("\udcff")
    for create in (True, False):
        with pytest.raises(UserError, match=r"cannot open .*nnn"):
            Store(path.with_name("n" * 5000), create=create)


def test_errors_of_our_own_making_stay_bugs() -> None:
    with pytest.raises(sqlite3.OperationalError), database.database_errors(Path("x"), "read"):
        sqlite3.connect(":memory:").execute("SELECT nonsense")
