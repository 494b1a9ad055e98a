"""The folder of one run, named by its identity: what was asked, how far it came, every answer, the record."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from personalign.contracts import UserError
from personalign.runtime.files import append_line, make_folder, plain_errors, read_jsonl, write_atomic

if TYPE_CHECKING:
    from omegaconf import DictConfig

Told = Literal["pending", "running", "done", "failed"]
Status = Literal["pending", "running", "done", "failed", "interrupted"]
SCHEMA_VERSION = 1
# What every answer says of itself; the rest are its own matters.
KEPT = ("request", "sample", "round", "text", "final", "selected")
ANEW = "remove it and status.json and run the same command again: no answer is lost"
WHOLE = "restore it, or remove the run's folder and run its command again"
PATIENCE = 0.5  # seconds to insist on a lock that somebody may only be asking about

_held: set[int] = set()


def _leave_to_parent() -> None:
    """A forked child, a data loader's worker say, must not keep the lock of a parent that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def held() -> tuple[int, ...]:
    """The locks of this process; a run is free again when every process that was given its lock has ended."""
    return tuple(_held)


def keep(lock: int) -> None:
    """Hold a lock that this process was started with for as long as it lives; its own children have no part in it."""
    os.set_inheritable(lock, False)
    _held.add(lock)


class Taken(UserError):
    """Another process computes the run, or has begun it since the caller looked."""


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunDir:
    """`root/identity`: config.yaml, status.json, run.lock, samples-<rank>.jsonl, record.json, checkpoints/.

    Whoever holds the lock (rank 0) writes; every rank appends answers to its own file. Raises `UserError`
    where a file cannot be written or read.
    """

    TUNING = "tuning.jsonl"

    def __init__(self, root: str | Path, identity: str, rank: int = 0) -> None:
        self.identity = identity
        self.rank = rank
        self.path = Path(root).expanduser() / identity

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints; it is there once a stage has written one."""
        return self.path / "checkpoints"

    def create(self, cfg: DictConfig) -> None:
        """Make the folder and write the resolved composition; a new run is pending."""
        from omegaconf import OmegaConf

        make_folder(self.path)
        write_atomic(self.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        if not self.details():
            self.set_status("pending")

    def config(self) -> DictConfig:
        """The composition as it was resolved. Raises `UserError` where its file is damaged: its last key, `choices`,
        tells that it is whole."""
        from omegaconf import DictConfig, OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        path = self.path / "config.yaml"
        with plain_errors(path, "read"):
            content = path.read_bytes()
        try:
            cfg = OmegaConf.load(StringIO(content.decode()))
        except (ValueError, OSError, YAMLError, OmegaConfBaseException) as error:  # OSError: of a lone number or word
            raise _damaged(path, str(error), WHOLE) from error
        if not isinstance(cfg, DictConfig) or "choices" not in cfg:
            raise _damaged(path, "it is no whole composition", WHOLE)
        return cfg

    @contextmanager
    def lock(self, starts: int | None = None) -> Iterator[None]:
        """Be the only one that computes this run; the kernel frees the lock however the process ends.

        Raises `Taken`, which names the holder, when another process has it; also when it was free, but the run is not
        at so many `starts` any more.
        """
        make_folder(self.path)
        with plain_errors(self._lock, "write"):
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
        _held.add(descriptor)
        try:
            self._acquire(descriptor)
            if starts is not None and self.starts != starts:
                raise Taken(f"the run {self.path} has been begun by another process meanwhile")
            self._sweep()
            yield
        finally:
            if descriptor in _held:
                _held.remove(descriptor)
                os.close(descriptor)

    @property
    def _lock(self) -> Path:
        return self.path / "run.lock"

    def _acquire(self, descriptor: int) -> None:
        patience = time.monotonic() + PATIENCE
        while not _locked(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > patience:
                raise Taken(f"the run {self.path} is in use by {_holder(descriptor)}; wait for it, or end it first")
            time.sleep(PATIENCE / 10)
        holder = {"pid": os.getpid(), "host": platform.node(), "since": now()}
        with plain_errors(self._lock, "write"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)

    def _sweep(self) -> None:
        """Remove what a write that was killed left behind."""
        for left in self.path.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def details(self) -> dict[str, Any]:
        """status.json: status, error, pid, host, how often it was started, and when it was created, last started and
        ended; {} before that."""
        told = _json(self.path / "status.json", "status")
        return {} if told is None else told

    def status(self) -> Status:
        """Where the run stands; interrupted when it says running and nobody holds its lock."""
        told: Status = self.details().get("status", "pending")
        return "interrupted" if told == "running" and self._free() else told

    def _free(self) -> bool:
        try:
            with open(self._lock) as stream:
                return _locked(stream.fileno(), fcntl.LOCK_SH)
        except OSError:
            return True

    @property
    def starts(self) -> int:
        """How often the run was begun or gone on with."""
        return int(self.details().get("starts", 0))

    def set_status(self, status: Told, error: str | None = None) -> None:
        """Write where the run stands; `running` starts its clock, `done` and `failed` stop it."""
        before, time = self.details(), now()
        details = {
            "status": status,
            "error": error,
            "pid": os.getpid(),
            "host": platform.node(),
            "starts": before.get("starts", 0) + (status == "running"),
            "created": before.get("created", time),
            "started": time if status == "running" else before.get("started"),
            "ended": time if status in ("done", "failed") else None,
        }
        write_atomic(self.path / "status.json", json.dumps(details, indent=2) + "\n")

    @property
    def created(self) -> str:
        """When the run was created; '' where that cannot be told."""
        try:
            return str(self.details().get("created") or "")
        except UserError:
            return ""

    def seconds(self) -> float | None:
        """Since the run was last started, until it ended; None before it was started."""
        details = self.details()
        if not details.get("started") or details["status"] not in ("running", "done", "failed"):
            return None
        ended = details["ended"] or now()
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(details["started"])).total_seconds()

    def append_response(self, row: Mapping[str, Any]) -> None:
        """Keep one answer (`Response.to_json`, whatever else is known of it): one line, written at once."""
        append_line(self.path / f"samples-{self.rank}.jsonl", json.dumps(row, ensure_ascii=False))

    def responses(self) -> list[dict[str, Any]]:
        """The answers of all ranks by round, request and sample, in that order.

        A request that was not whole when its rank was killed has been answered anew, maybe by another rank, and maybe
        rounded otherwise: what counts is one rank's, of those that gave one of its answers, and what it wrote last.
        """
        found: dict[tuple[int, str], dict[int, dict[str, Any]]] = {}
        for path in sorted(self.path.glob("samples-*.jsonl")):
            for request, rows in _by_request(path).items():
                if request not in found or not _given(found[request]):
                    found[request] = rows if _given(rows) else found.get(request, rows)
        return [found[request][sample] for request in sorted(found) for sample in sorted(found[request])]

    def tuning(self) -> list[dict[str, Any]]:
        """What each strength that has been tried so far came to (see `tuning`), in order."""
        path = self.path / self.TUNING
        return list(read_jsonl(path)) if path.is_file() else []

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write the result, with the version of its schema."""
        content = {"schema_version": SCHEMA_VERSION, **record}
        write_atomic(self.path / "record.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def record(self) -> dict[str, Any] | None:
        """The result, None before there is one; `UserError` when a newer version wrote it."""
        path = self.path / "record.json"
        record = _json(path, "schema_version")
        version = SCHEMA_VERSION if record is None else record["schema_version"]
        if not isinstance(version, int):
            raise _damaged(path, f"schema_version is {version!r}", ANEW)
        if version > SCHEMA_VERSION:
            raise UserError(f"{path} was written by a newer version; upgrade personalign")
        return record


def find_runs(root: str | Path) -> list[RunDir]:
    """The runs at or directly below a folder, oldest first."""
    folder = Path(root).expanduser()
    places = {path.parent for pattern in ("status.json", "*/status.json") for path in folder.glob(pattern)}
    runs = [RunDir(place.parent, place.name) for place in sorted(place.absolute() for place in places)]
    return sorted(runs, key=lambda run: run.created)


def _by_request(path: Path) -> dict[tuple[int, str], dict[int, dict[str, Any]]]:
    """The answers in one rank's file by round and request, then by sample, as they were last written."""
    found: dict[tuple[int, str], dict[int, dict[str, Any]]] = {}
    for row in read_jsonl(path):
        if lacking := [name for name in KEPT if name not in row]:
            which = f" to {row['request']!r}" if "request" in row else ""
            raise UserError(
                f"{path}: an answer{which} without the field {lacking[0]!r}; remove its line, and what is missing then "
                "is answered anew"
            )
        found.setdefault((row.get("round", 0), row["request"]), {})[row.get("sample", 0)] = row
    return found


def _given(rows: Mapping[int, Mapping[str, Any]]) -> bool:
    """Whether one of a request's answers was given: it is written last."""
    return any(row.get("selected") for row in rows.values())


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    try:
        told = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {told['pid']} on {told['host']} since {told['since']}"
    except (ValueError, KeyError):
        return "another process"


def _damaged(path: Path, how: str, remedy: str) -> UserError:
    return UserError(f"{path} is damaged ({' '.join(how.split())}); {remedy}")


def _json(path: Path, key: str) -> dict[str, Any] | None:
    """The object in a file, which has at least `key`; None where there is no file."""
    with plain_errors(path, "read"):
        if not path.is_file():
            return None
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except ValueError as error:
        raise _damaged(path, str(error), ANEW) from error
    if not isinstance(value, dict) or key not in value:
        raise _damaged(path, f"there is no {key} in it", ANEW)
    return value
