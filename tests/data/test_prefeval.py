"""PrefEval's explicit preferences and its multiple choice, in made-up files and in a real copy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from personalign.contracts import UserError
from personalign.data.prefeval import OPTIONS, PrefEval

REAL = Path(os.environ.get("PERSONALIGN_DATA", "")) / "prefeval"
ROWS: list[dict[str, Any]] = [
    {"preference": "I hate cheese.", "question": "What pizza is good?", "explanation": "Most have cheese."},
    {"preference": "I love trains.", "question": "How do I get to Rome?", "explanation": "People fly."},
    {"preference": "I hate cheese.", "question": "What is a good snack?"},
]
CHOICES = ["Marinara.", "Margherita.", "Quattro formaggi."]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "travel.json").write_text(json.dumps([ROWS[1]]))
    (tmp_path / "food.json").write_text(json.dumps([ROWS[0], ROWS[2]]))
    return tmp_path


def part(path: Path, files: list[str] | None = None, limit: int | None = None) -> PrefEval:
    return PrefEval(path=str(path), files=files, limit=limit)


def test_a_user_is_a_preference_that_it_states(path: Path) -> None:
    data = part(path)
    said = {user: [(e.kind, e.payload["text"]) for e in data.events(user)] for user in data.users()}
    assert sorted(said.values()) == [[("statement", "I hate cheese.")], [("statement", "I love trains.")]]
    asked = {(said[r.user][0][1], r.messages[0].content, r.context["topic"]) for r in data.requests("test")}
    assert asked == {(r["preference"], r["question"], "travel" if "Rome" in r["question"] else "food") for r in ROWS}
    assert len({r.id for r in data.requests("test")}) == 3
    assert all(e.time < r.time for r in data.requests("test") for e in data.events(r.user))
    assert all(r.choices == r.references == () for r in data.requests("test"))
    assert data.requests("train") == data.requests("validation") == data.pairs("train") == data.pairs("test") == ()


def test_of_the_options_the_first_is_right(path: Path) -> None:
    (path / "food.json").write_text(json.dumps([{**ROWS[0], OPTIONS: CHOICES}]))
    (request,) = part(path, ["food"]).requests("test")
    assert request.choices == tuple(CHOICES) and request.references == ("Marinara.",)
    assert request.messages[-1].content == ROWS[0]["question"], "the prompt shows no options"


def test_a_row_that_comes_twice_counts_once(path: Path) -> None:
    (path / "food copy.json").write_text(json.dumps([ROWS[0], ROWS[0], ROWS[2]]))
    assert len(part(path).requests("test")) == 3
    assert [r.context["topic"] for r in part(path, limit=1).requests("test")] == ["food", "travel"], "not twice"
    other = [{**ROWS[0], OPTIONS: CHOICES}, {**ROWS[0], OPTIONS: CHOICES[:2]}]
    (path / "food copy.json").write_text(json.dumps(other))
    assert len(part(path).requests("test")) == 5 and len(part(path).users()) == 2


def test_topics_may_be_fields_and_limit_counts_in_each(path: Path, tmp_path: Path) -> None:
    lines = tmp_path / "all.jsonl"
    rows = [{**row, "topic": topic} for row, topic in zip(ROWS, ("food", "travel", "food"), strict=True)]
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    assert {r.id for r in part(lines).requests("test")} == {
        r.id for r in part(path, ["food", "travel"]).requests("test")
    }
    assert [r.context["topic"] for r in part(lines, limit=1).requests("test")] == ["food", "travel"]
    assert len({part(lines).fingerprint(), part(lines, limit=1).fingerprint()}) == 2


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "x"}, r'food.json, line 1 \(item 1\), field "preference": is missing'),
        ({"preference": "x"}, 'field "question": is missing'),
        ({"preference": " ", "question": "x"}, 'field "preference": is empty'),
        ({"preference": ["x"], "question": "x"}, 'field "preference": expected a text, found a list'),
        ({**ROWS[0], "topic": 3}, 'field "topic": expected a text'),
        ({**ROWS[0], OPTIONS: "abc"}, f'field "{OPTIONS}": expected a list, found a text'),
        ({**ROWS[0], OPTIONS: []}, f'field "{OPTIONS}": expected at least two texts'),
        ({**ROWS[0], OPTIONS: ["a"]}, f'field "{OPTIONS}": expected at least two texts'),
        ({**ROWS[0], OPTIONS: ["a", "b", "a"]}, rf'field "{OPTIONS}\[2\]": is the same text as one before it'),
        ({**ROWS[0], OPTIONS: ["a", 7]}, rf'field "{OPTIONS}\[1\]": expected a text, found a number'),
        ({**ROWS[0], OPTIONS: ["a", ""]}, rf'field "{OPTIONS}\[1\]": is empty'),
        ({**ROWS[0], "conversation": {}}, 'field "conversation": tells the preference between the lines'),
    ],
)
def test_broken_rows(row: dict[str, Any], expected: str, path: Path) -> None:
    (path / "food.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=expected):
        part(path).users()


def test_missing_files_say_where_to_get_them(path: Path) -> None:
    with pytest.raises(UserError, match=r"no file or folder .*; download benchmark_dataset/explicit_preference"):
        part(path / "none").users()
    with pytest.raises(UserError, match=r"holds no 'fod'; there are food.json, travel.json; download"):
        part(path, ["fod"]).users()


@pytest.mark.skipif(
    "PERSONALIGN_DATA" not in os.environ or not REAL.is_dir(), reason="PERSONALIGN_DATA names no real copy"
)
@pytest.mark.parametrize(
    ("name", "rows", "questions", "users"), [("explicit_preference", 743, 743, 736), ("mcq_options", 795, 743, 738)]
)
def test_real_copy(name: str, rows: int, questions: int, users: int) -> None:
    """One topic of the multiple choice is there twice."""
    table = [json.loads(line) for line in (REAL / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    data = part(REAL, [name])
    asked = data.requests("test")
    unique = {(r["preference"], r["question"], tuple(r.get(OPTIONS, ()))) for r in table}
    assert (len(table), len(asked), len(data.users())) == (rows, questions, users)
    said = {user: data.events(user)[0].payload["text"] for user in data.users()}
    assert {(said[r.user], r.messages[0].content, r.choices) for r in asked} == unique
    assert all(r.references == r.choices[:1] and len(r.choices) == (4 if "mcq" in name else 0) for r in asked)
