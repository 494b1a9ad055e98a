"""The Koala prompts: every user asks all of them, states its preferences, and has no pairs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from personalign.contracts import UserError
from personalign.data.psoups_eval import PSoupsEval
from personalign.ratings.dimensions import DIMENSIONS

CONF = Path(__file__).parents[2] / "conf" / "data" / "psoups_eval.yaml"
REAL = Path(os.environ.get("PERSONALIGN_DATA", "")) / "psoups_eval"
PROMPTS = [{"id": str(n), "prompt": f"Question {n}?", "ignored": True} for n in range(5)]
VALUES: dict[str, Any] = {
    "files": None,
    "statements": {"SHORT": "Be short.", "WARM": "Be warm.", "FACTS": "Facts, please."},
    "stances": {"SHORT": {"length": -1.0, "warmth": -0.25}, "WARM": {"warmth": 0.75}},
    "users": {"ana": ["WARM", "SHORT"], "ben": ["FACTS"], "cid": []},
    "limit": None,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "koala_eval_50.json"
    file.write_text(json.dumps(PROMPTS))
    return file


def part(path: Path | str, **changes: Any) -> PSoupsEval:
    return PSoupsEval(path=str(path), **{**VALUES, **changes})


def test_every_user_asks_every_prompt_in_test(path: Path) -> None:
    data = part(path)
    assert data.users() == ("ana", "ben", "cid")
    asked = [(r.user, r.messages[0].role, r.messages[0].content) for r in data.requests("test")]
    assert asked == [(user, "user", row["prompt"]) for user in data.users() for row in PROMPTS]
    assert len({r.id for r in data.requests("test")}) == 15
    assert {r.time for r in data.requests("test")} == {float("inf")}
    assert data.requests("train") == data.requests("validation") == ()


def test_there_are_no_pairs_and_none_are_promised(path: Path) -> None:
    assert all(part(path).pairs(split) == () for split in ("train", "validation", "test"))
    assert "pairs" not in PSoupsEval.provides


def test_users_state_their_preferences_and_declare_their_sum(path: Path) -> None:
    data = part(path)
    events = data.events("ana")
    assert [e.payload["text"] for e in events if e.kind == "statement"] == ["Be warm.", "Be short."]
    assert events[-1].payload == {"stance": {"warmth": 0.5, "length": -1.0}}
    assert [e.time for e in events] == [0.0, 1.0, 2.0] and len({e.id for e in events}) == 3
    assert [e.kind for e in data.events("ben")] == ["statement"] and data.events("cid") == []
    truth = {r.user: data.truth(r) for r in data.requests("test")}
    assert truth["ana"].stance.as_dict() == events[-1].payload["stance"]
    assert truth["ben"] is None and truth["cid"] is None


def test_sum_stays_within_one(path: Path) -> None:
    stances = {"SHORT": {"warmth": 0.75}, "WARM": {"warmth": 0.75}}
    assert part(path, stances=stances).events("ana")[-1].payload["stance"] == {"warmth": 1.0}


def test_require_names_what_the_settings_lack(path: Path) -> None:
    for need in ("truth", "events.stance"):
        with pytest.raises(UserError, match=r"lacks data.stances for a preference of every user"):
            part(path).require((need,))
        part(path, users={"ana": ["WARM"]}).require((need,))


def test_limit_takes_the_first_prompts(path: Path) -> None:
    asked = [r.messages[0].content for r in part(path, limit=2).requests("test") if r.user == "ben"]
    assert asked == ["Question 0?", "Question 1?"]


def test_lines_serve_as_well_as_an_array(path: Path, tmp_path: Path) -> None:
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in PROMPTS))
    assert part(lines).requests("test") == part(path).requests("test")
    assert len({part(lines).fingerprint(), part(path).fingerprint(), part(path, limit=2).fingerprint()}) == 3
    assert part(path).fingerprint() == part(path).fingerprint()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"id": "1"}], r'line 1 \(item 1\), field "prompt": is missing'),
        ([{"prompt": "x"}], 'field "id": is missing'),
        ([PROMPTS[0], PROMPTS[0]], r"""line 1 \(item 2\), field "id": '0' was there before"""),
        ([], "holds no rows"),
    ],
)
def test_broken_files(rows: list[dict[str, Any]], expected: str, path: Path) -> None:
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=expected):
        part(path).requests("test")


def test_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file or folder .*download inference/data/koala_eval_50.json"):
        part(tmp_path / "koala.json").requests("test")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"users": {}}, "data.users: name at least one user"),
        ({"users": {"ana": ["WARN"]}}, "data.users.ana: no preference 'WARN'; did you mean 'WARM'"),
        ({"stances": {"SHART": {"length": 1.0}}}, "data.stances: no preference 'SHART'; did you mean 'SHORT'"),
        ({"statements": {**VALUES["statements"], "WARM": " "}}, "data.statements.WARM: is empty"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        part("anywhere", **changes)


def shipped(path: Path) -> PSoupsEval:
    values = yaml.safe_load(CONF.read_text())
    del values["_target_"]
    return PSoupsEval(**{**values, "path": str(path)})


def test_shipped_users_are_the_eight_combinations(path: Path) -> None:
    data = shipped(path)
    stances = {u: data.truth(r).stance.as_dict() for r in data.requests("test") for u in [r.user]}
    signs = {tuple(value for _, value in sorted(stance.items())) for stance in stances.values()}
    assert len(data.users()) == len(signs) == 8
    assert all(set(stance) == {"grade", "length", "concreteness"} for stance in stances.values())
    assert stances["exp_con_fac"] == {"grade": 1.0, "length": -1.0, "concreteness": 1.0}
    data.require(("truth", "events.stance"))


@pytest.mark.parametrize("choice", ["alignx_psoups", "psoups_eval"])
def test_shipped_stances_are_of_dimensions_that_can_be_computed(choice: str) -> None:
    stances = yaml.safe_load((CONF.parent / f"{choice}.yaml").read_text())["stances"]
    assert stances and {name for stance in stances.values() for name in stance} <= set(DIMENSIONS)


@pytest.mark.skipif(
    "PERSONALIGN_DATA" not in os.environ or not REAL.is_dir(), reason="PERSONALIGN_DATA names no real copy"
)
def test_real_copy() -> None:
    assert len(shipped(REAL).requests("test")) == 8 * 50
