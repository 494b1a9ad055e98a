"""Run directories: one run at a time, resume after a kill, the union of what ranks wrote."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from personalign.contracts import UserError
from personalign.runtime import rundir
from personalign.runtime.rundir import RunDir, find_runs

HOLD = """
import sys, time
from personalign.runtime.rundir import RunDir
run = RunDir(sys.argv[1], "run")
with run.lock():
    run.set_status("running")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    one = RunDir(tmp_path, "run")
    one.create(OmegaConf.create({"seed": 1, "name": "${seed}", "choices": {}}))
    return one


@pytest.fixture
def holder(run: RunDir) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path.parent)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_new_run_is_pending_and_resolved(run: RunDir) -> None:
    assert run.status() == "pending" and run.record() is None and run.responses() == []
    assert run.config() == {"seed": 1, "name": 1, "choices": {}}
    assert run.checkpoints == run.path / "checkpoints"


def test_create_again_keeps_the_status(run: RunDir) -> None:
    run.set_status("done")
    run.create(OmegaConf.create({"seed": 1}))
    assert run.status() == "done"


def test_status_tells_times_process_and_error(run: RunDir) -> None:
    created = run.details()["created"]
    with run.lock():
        run.set_status("running")
        assert run.status() == "running" and run.details()["ended"] is None
        run.set_status("failed", error="out of memory")
    told = run.details()
    assert (told["status"], told["error"], told["pid"]) == ("failed", "out of memory", os.getpid())
    assert told["created"] == created <= told["started"] <= told["ended"]


def test_second_run_is_told_who_holds_it(run: RunDir, holder: subprocess.Popen[bytes]) -> None:
    told = rf"in use by process {holder.pid} on .* since 20\d\d-.*; wait for it"
    with pytest.raises(UserError, match=told), run.lock():
        pytest.fail("two runs in one folder")
    assert run.status() == "running"


def test_kill_frees_the_lock_and_the_run_is_interrupted(run: RunDir, holder: subprocess.Popen[bytes]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert run.status() == "interrupted"
    with run.lock():
        assert run.status() == "running"


def test_the_lock_is_exclusive_within_a_process_and_is_given_back(run: RunDir) -> None:
    with run.lock(), pytest.raises(UserError, match="in use"), run.lock():
        pytest.fail("locked twice")
    with run.lock():
        pass


def test_the_lock_sweeps_up_after_killed_writes(run: RunDir) -> None:
    (run.path / ".status.json.01234567.tmp").write_text("half")
    with run.lock():
        assert sorted(os.listdir(run.path)) == ["config.yaml", "run.lock", "status.json"]


def test_errors_inside_the_lock_stay_what_they_are(run: RunDir) -> None:
    with pytest.raises(FileNotFoundError), run.lock():
        raise FileNotFoundError("of the body")
    with run.lock():
        pass


def test_a_forked_child_does_not_keep_the_lock(run: RunDir) -> None:
    with run.lock():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        child.start()
    try:
        with run.lock():
            assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_asking_for_the_status_does_not_turn_a_run_away(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = os.open(run.path / "run.lock", os.O_RDWR | os.O_CREAT)
    assert rundir._locked(reader, rundir.fcntl.LOCK_SH)
    monkeypatch.setattr(rundir.time, "sleep", lambda _: os.close(reader))
    with run.lock():
        assert run.details()["status"] == "pending"


def row(request: str, text: str, sample: int = 0, round: int = 0) -> dict[str, object]:
    told = {"request": request, "sample": sample, "round": round, "text": text}
    return {**told, "final": True, "selected": False}


def test_responses_are_the_union_of_ranks(tmp_path: Path) -> None:
    first, second = RunDir(tmp_path, "run", rank=0), RunDir(tmp_path, "run", rank=1)
    first.path.mkdir()
    second.append_response(row("b", "of rank 1"))
    first.append_response(row("c", "ö"))
    first.append_response(row("a", "later round", round=1))
    first.append_response(row("a", "second", sample=1))
    first.append_response(row("a", "first"))
    second.append_response(row("a", "again"))
    with open(first.path / "samples-0.jsonl", "a") as stream:
        stream.write('{"request": "torn')
    texts = [one["text"] for one in first.responses()]
    assert texts == ["first", "second", "of rank 1", "ö", "later round"]
    first.append_response(row("d", "after the tear"))
    assert [one["text"] for one in second.responses()][4] == "after the tear"


def test_a_request_that_was_answered_anew_is_one_makes(tmp_path: Path) -> None:
    """The first time it was not whole, the second time rounding chose another answer; by the same rank or by others."""
    first, again = [(0, "a", False), (2, "c", False)], [(1, "B", False), (2, "C", False), (0, "A", True)]
    for number, (before, after) in enumerate([(0, 0), (0, 1), (1, 0)]):
        ranks = [RunDir(tmp_path, str(number), rank) for rank in (0, 1)]
        ranks[0].path.mkdir()
        for rank, made in ((before, first), (after, again)):
            for sample, text, selected in made:
                ranks[rank].append_response({**row("q", text, sample), "selected": selected})
        assert [one["text"] for one in ranks[0].responses()] == ["A", "B", "C"]


def test_a_strange_answer_is_named(run: RunDir) -> None:
    run.append_response({"text": "no request"})
    with pytest.raises(UserError, match=r"samples-0\.jsonl: an answer without the field 'request'"):
        run.responses()


@pytest.mark.parametrize("name", ["selected", "round", "sample", "final", "text"])
def test_an_answer_that_lacks_a_field_is_named(run: RunDir, name: str) -> None:
    run.append_response(row("a", "whole"))
    run.append_response({key: value for key, value in row("b", "torn").items() if key != name})
    told = rf"samples-0\.jsonl: an answer to 'b' without the field '{name}'; remove its line"
    with pytest.raises(UserError, match=told):
        run.responses()


def test_the_record_carries_its_schema(run: RunDir) -> None:
    run.write_record({"metrics": {"reward": 0.5}})
    assert run.record() == {"schema_version": 1, "metrics": {"reward": 0.5}}
    run.write_record({"schema_version": 99})
    with pytest.raises(UserError, match="written by a newer version"):
        run.record()


@pytest.mark.parametrize("name", ["record.json", "status.json"])
def test_damaged_files_are_named(run: RunDir, name: str) -> None:
    (run.path / name).write_bytes(b"\x80{")
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        run.record() if name == "record.json" else run.status()


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"schema_version": "1", "created": "x"}'])
@pytest.mark.parametrize("name", ["record.json", "status.json"])
def test_files_of_another_kind_are_damaged(run: RunDir, name: str, content: str) -> None:
    (run.path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*\); remove it and status.json and run the same"):
        run.record() if name == "record.json" else run.seconds()
    assert [one.identity for one in find_runs(run.path.parent)] == ["run"]


@pytest.mark.parametrize("content", [b"", b"seed: [1\n", b"seed: 1\nname: x\n", b"- 1\n", b"3", b"\xff", b"a: ${b\n"])
def test_a_damaged_composition_is_named(run: RunDir, content: bytes) -> None:
    (run.path / "config.yaml").write_bytes(content)
    told = r"config\.yaml is damaged \(.*\); restore it, or remove the run's folder and run its command again$"
    with pytest.raises(UserError, match=told):
        run.config()


def test_runs_are_found_oldest_first(tmp_path: Path) -> None:
    for name, time_ in (("x", "2026-01-02"), ("a", "2026-01-03"), ("m", "2026-01-01")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(f'{{"status": "done", "created": "{time_}"}}')
    (tmp_path / "no-run").mkdir()
    assert [one.identity for one in find_runs(tmp_path)] == ["m", "x", "a"]
    (alone,) = find_runs(tmp_path / "x")
    assert alone.identity == "x" and alone.status() == "done"
    assert find_runs(tmp_path / "nowhere") == []


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = RunDir(tmp_path / "file", "run")
    with pytest.raises(UserError, match="a part of its path is a file"):
        run.create(OmegaConf.create({}))
    with pytest.raises(UserError, match="a part of its path is a file"), run.lock():
        pytest.fail("locked nothing")
