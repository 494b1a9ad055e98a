"""Opens the SQLite file of an event store; whatever SQLite says against it becomes one plain line."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from personalign.contracts import UserError
from personalign.runtime.files import make_folder, plain_errors

PATIENCE = 30.0  # seconds that one process waits for another
MARK = 0x50414556  # SQLite's application id: tells an event store from any other database
SCHEMA = 1
# A user's events lie beside one another, so that reading them takes the same few pages among any number of users.
TABLES = """
CREATE TABLE events (
  id TEXT NOT NULL UNIQUE,
  user TEXT NOT NULL,
  time REAL NOT NULL,
  kind TEXT NOT NULL,
  payload TEXT NOT NULL,
  source TEXT NOT NULL,
  PRIMARY KEY (user, time, id)
) WITHOUT ROWID;
CREATE TABLE revision (token TEXT NOT NULL);
INSERT INTO revision VALUES (lower(hex(randomblob(8))));
"""
NO_STORE = "name a file that `personalign memory import` has made"
HELD = ("another process has held it for too long", "try again when that one is done")
REASONS = {
    sqlite3.SQLITE_BUSY: HELD,
    sqlite3.SQLITE_PROTOCOL: HELD,
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space or choose another place"),
    sqlite3.SQLITE_READONLY: ("it is read-only", "change its permissions or choose another place"),
    sqlite3.SQLITE_PERM: ("permission is denied", "change its permissions or choose another place"),
    sqlite3.SQLITE_CANTOPEN: ("it or its folder may not be opened", "check the path and the permissions of both"),
    sqlite3.SQLITE_NOTADB: ("it is no database", NO_STORE),
    sqlite3.SQLITE_CORRUPT: ("it is damaged", "import your last export into a new store"),
    sqlite3.SQLITE_IOERR: ("the disk could not be read or written", "check the disk and the file size limit"),
    sqlite3.SQLITE_TOOBIG: ("a text is larger than a database can hold", "shorten it"),
}


@contextmanager
def database_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what SQLite raises in the body into a `UserError` that names the path, the cause and the remedy."""
    try:
        yield
    except sqlite3.Error as error:
        reason = REASONS.get(_code(error))
        if reason is None:
            raise
        raise UserError(f"cannot {doing} {path}: {reason[0]}; {reason[1]}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"cannot {doing} {path}: the name is no whole Unicode text; write it in UTF-8") from error


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary error code; 0 where Python's own module raised the error."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def connect(path: Path, create: bool) -> sqlite3.Connection:
    """A connection in autocommit mode to a store; `create` makes one where there is none.

    Raises UserError for what is no store, for one of a newer schema, and for a place that cannot be used.
    """
    if create:
        make_folder(path.parent)
    with plain_errors(path, "open"):
        if not create and not path.exists():
            raise UserError(f"{path}: no such store; {NO_STORE}")
    with database_errors(path, "open"):
        place = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        db = sqlite3.connect(place, uri=True, timeout=PATIENCE, isolation_level=None)
        try:
            _prepare(db, path, create)
        except BaseException:
            db.close()
            raise
    return db


def _prepare(db: sqlite3.Connection, path: Path, create: bool) -> None:
    if create and _is_empty(db):
        _make_tables(db)
    mark, version = _pragma(db, "application_id"), _pragma(db, "user_version")
    if mark != MARK:
        raise UserError(f"cannot open {path}: it is a database, but no event store; {NO_STORE}")
    if version > SCHEMA:
        raise UserError(
            f"cannot open {path}: a newer personalign has written it (schema {version}, known is {SCHEMA}); update"
        )
    db.execute("PRAGMA secure_delete = ON")
    db.execute("PRAGMA synchronous = FULL")  # what is committed outlasts a power cut
    if not patiently(lambda: _write_ahead(db)):
        raise UserError(
            f"cannot open {path}: processes cannot share it there, or one holds it; choose a local disk, or try again"
        )


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _make_tables(db: sqlite3.Connection) -> None:
    """All or nothing, and once: of several processes that come at the same time the first one makes them."""
    db.execute("BEGIN IMMEDIATE")
    if _is_empty(db):
        for statement in TABLES.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {MARK}")
        db.execute(f"PRAGMA user_version = {SCHEMA}")
    db.execute("COMMIT")


def _write_ahead(db: sqlite3.Connection) -> bool:
    """Let readers and one writer at a time not wait for each other; False while another process is in the way."""
    try:
        if db.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",):
            return True
    except sqlite3.OperationalError as error:
        if _code(error) != sqlite3.SQLITE_BUSY:
            raise
    return False


def patiently(attempt: Callable[[], bool]) -> bool:
    """Whether one of the attempts succeeds in the time that a process waits, where SQLite itself does not wait."""
    end = time.monotonic() + PATIENCE
    while not attempt():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
