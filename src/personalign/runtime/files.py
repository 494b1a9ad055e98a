"""Files that a crash, a full disk or a torn line cannot spoil; every failure is said in one plain line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from personalign.contracts import UserError

ELSEWHERE = "choose another place (paths.runs, paths.cache)"
REASONS = {
    errno.ENOSPC: ("the disk is full", f"free some space or {ELSEWHERE}"),
    errno.EDQUOT: ("the disk quota is used up", f"free some space or {ELSEWHERE}"),
    errno.EFBIG: ("it would exceed the file size limit", "raise it (ulimit -f)"),
    errno.EROFS: ("the disk is read-only", ELSEWHERE),
    errno.EACCES: ("permission is denied", f"change its permissions or {ELSEWHERE}"),
    errno.EPERM: ("permission is denied", f"change its permissions or {ELSEWHERE}"),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", ELSEWHERE),
    errno.EEXIST: ("a part of its path is a file, not a folder", ELSEWHERE),
    errno.EISDIR: ("it is a folder", "give the name of a file"),
    errno.ENOENT: ("it does not exist", "check the path"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}


@contextmanager
def plain_errors(path: str | Path, doing: str) -> Iterator[None]:
    """Turn an `OSError` of the body, or what torch and safetensors make of one, into a `UserError` that names
    the path, the cause and the remedy."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        unknown = (os.strerror(number) if number else "it could not be finished", f"check the disk or {ELSEWHERE}")
        cause, remedy = REASONS.get(number, unknown)
        raise UserError(f"cannot {doing} {path}: {cause}; {remedy}") from error


def _error_number(error: Exception) -> int | None:
    """The system's error behind an exception: 0 where it is not told, None where there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    told = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
    if told:
        return int(told[1])
    writing = isinstance(error, RuntimeError) and re.search("inline_container|PytorchStreamWriter", str(error))
    return 0 if writing else None


def make_folder(path: str | Path) -> Path:
    """Make a folder and those above it. Raises `UserError`."""
    folder = Path(path)
    with plain_errors(folder, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        _write_new(temporary, data)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file whole or not at all: readers and crashes see the old content or the new one.

    Folders above it are made; a link is followed; a device or pipe is written in place. Raises `UserError`.
    """
    data = content.encode() if isinstance(content, str) else content
    with plain_errors(path, "write"):
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file() and not target.is_dir():
            with open(target, "wb", buffering=0) as stream:
                _write_all(stream.fileno(), data)
        else:
            _replace(target, data)


def append_line(path: str | Path, text: str, *, fsync: bool = False) -> None:
    """Append one line in one call, after cutting off what a crash left of an unfinished last line.

    One writer per file. When the write fails the file keeps its old length. Raises `UserError`.
    """
    if "\n" in text:
        raise ValueError("a line cannot contain a line break")
    with plain_errors(path, "write"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _append(descriptor, text.encode() + b"\n")
            if fsync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _append(descriptor: int, line: bytes) -> None:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        size, line = _mend(descriptor, size, line)
    try:
        _write_all(descriptor, line)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _mend(descriptor: int, size: int, line: bytes) -> tuple[int, bytes]:
    start = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    if _object(os.pread(descriptor, size - start, start)) is not None:
        return size, b"\n" + line
    os.ftruncate(descriptor, start)
    return os.lseek(descriptor, start, os.SEEK_SET), line


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """One JSON object per line; empty lines are skipped and a last line that a crash tore is dropped.

    Raises `UserError` with file and line for any other line that is not a JSON object in UTF-8.
    """
    with plain_errors(path, "read"):
        *lines, last = Path(path).read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _object(line)
            if row is None:
                raise UserError(f"{path}, line {number}: not a JSON object in UTF-8; correct or remove the line")
            rows.append(row)
    final = _object(last)
    return rows if final is None else [*rows, final]


def sha256(source: str | Path | bytes) -> str:
    """The SHA-256, in hex, of bytes or of the file at a path. Raises `UserError`."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with plain_errors(source, "read"), open(source, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def content_hash(value: object) -> str:
    """The SHA-256, in hex, of plain data as canonical JSON: sorted keys, no spaces, ASCII."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain).encode())
