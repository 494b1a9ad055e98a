"""Files: whole or not at all, torn lines, plain messages for every way in which a disk refuses."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from personalign.contracts import UserError
from personalign.runtime.files import (
    append_line,
    content_hash,
    make_folder,
    plain_errors,
    read_jsonl,
    sha256,
    write_atomic,
)

LOOP = """
import sys
from personalign.runtime.files import write_atomic
print("ready", flush=True)
while True:
    for letter in "ab":
        write_atomic(sys.argv[1], letter * 3_000_000)
"""
LIMITED = """
import resource, sys
from personalign.contracts import UserError
from personalign.runtime.files import append_line, write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for write, text in ((write_atomic, "x" * 50_000), (append_line, '{"long": "' + "x" * 50_000 + '"}')):
    try:
        write(sys.argv[1], text)
    except UserError as error:
        print(error)
"""


def test_writes_text_and_bytes_into_new_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    write_atomic(target, "Grüße")
    assert target.read_bytes() == "Grüße".encode()
    write_atomic(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    assert os.listdir(target.parent) == ["b.txt"]


def test_kill_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "state"
    for wait in (0.01, 0.023, 0.037, 0.052, 0.011, 0.029):
        process = subprocess.Popen([sys.executable, "-c", LOOP, str(target)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        while not target.exists():
            time.sleep(0.001)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert target.read_text() in ("a" * 3_000_000, "b" * 3_000_000)


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "x", "1")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_file_size_limit_spoils_nothing(tmp_path: Path) -> None:
    target = tmp_path / "kept.jsonl"
    target.write_text('{"old": 1}\n')
    done = subprocess.run([sys.executable, "-c", LIMITED, str(target)], capture_output=True, text=True, check=True)
    assert done.stdout.count("it would exceed the file size limit; raise it (ulimit -f)") == 2
    assert target.read_text() == '{"old": 1}\n'
    assert os.listdir(tmp_path) == ["kept.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("write", [write_atomic, append_line])
def test_full_disk_is_said_plainly(write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="cannot write /dev/full: the disk is full; free some space"):
        write("/dev/full", "text")
    assert Path("/dev/full").is_char_device()


def test_a_path_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "below"
    for act in (make_folder, read_jsonl, lambda path: write_atomic(path, "x"), lambda path: append_line(path, "x")):
        with pytest.raises(UserError, match="a part of its path is a file"):
            act(below)


def test_full_disks_inside_other_writers_are_said_plainly(tmp_path: Path) -> None:
    """The very words of safetensors and of torch when a file size limit stops them."""
    for error, cause in (
        (Exception("Error while serializing: I/O error: File too large (os error 27)"), "the file size limit"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
            "could not be finished",
        ),
        (OSError("nobody knows"), "could not be finished"),
    ):
        with pytest.raises(UserError, match=f"cannot write there: it .*{cause}"), plain_errors("there", "write"):
            raise error
    with pytest.raises(RuntimeError, match="ours"), plain_errors("there", "write"):
        raise RuntimeError("ours")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is a folder"):
        write_atomic(tmp_path, "x")
    assert tmp_path.is_dir()


def test_lines_come_back(tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl"
    for number in range(3):
        append_line(target, f'{{"n": {number}}}', fsync=True)
    assert read_jsonl(target) == [{"n": 0}, {"n": 1}, {"n": 2}]
    with pytest.raises(ValueError):
        append_line(target, "two\nlines")


@pytest.mark.parametrize("cut", range(1, len('{"text": "é"}\n'.encode()) + 1))
def test_a_torn_last_line_is_dropped_and_mended(tmp_path: Path, cut: int) -> None:
    target, last = tmp_path / "rows.jsonl", '{"text": "é"}\n'.encode()
    target.write_bytes(b'{"n": 0}\n' + last[:-cut])
    whole = [{"text": "é"}] if cut == 1 else []  # all but its line break was written
    assert read_jsonl(target) == [{"n": 0}, *whole]
    append_line(target, '{"n": 1}')
    assert read_jsonl(target) == [{"n": 0}, *whole, {"n": 1}]
    assert target.read_bytes().endswith(b'}\n{"n": 1}\n')


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"x": "\xff"}', b"12", b"null"])
def test_another_malformed_line_is_named(tmp_path: Path, line: bytes) -> None:
    target = tmp_path / "rows.jsonl"
    target.write_bytes(b'{"n": 0}\n\n' + line + b'\n{"n": 1}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 3: not a JSON object in UTF-8"):
        read_jsonl(target)


def test_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert read_jsonl(tmp_path / "empty") == []
    with pytest.raises(UserError, match=r"cannot read .*absent: it does not exist"):
        read_jsonl(tmp_path / "absent")


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4's example
    assert sha256(b"abc") == sha256(tmp_path / "x") == sha256(str(tmp_path / "x")) == known


@dataclass(frozen=True)
class Point:
    y: float
    x: tuple[int, ...]


def test_content_hash_is_of_the_content_alone() -> None:
    one = content_hash({"b": [1, Path("p")], "a": Point(0.5, (1, 2))})
    assert one == content_hash({"a": {"x": [1, 2], "y": 0.5}, "b": (1, "p")})
    assert one == hashlib.sha256(b'{"a":{"x":[1,2],"y":0.5},"b":[1,"p"]}').hexdigest()
    assert one != content_hash({"a": {"x": [2, 1], "y": 0.5}, "b": (1, "p")})
    with pytest.raises(TypeError, match="set has no canonical"):
        content_hash({"a": {1}})
