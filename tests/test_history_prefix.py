"""Encoded histories on the whole way: from the data's events to answers, and no text of another user on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personalign import Experiment, compose
from personalign.contracts import UserError
from personalign.generation.history_prefix import HistoryPrefix
from personalign.plans import Chat, Soft
from personalign.system import System

SMALL = ["model=tiny", "precision=fp32", "data.users=4", "data.pool=shipped", "debug=fast"]


WROTE = {"ana": "red foxes", "Ana": "blue skies"}


@pytest.fixture
def words(encoder: Path, tmp_path: Path) -> list[str]:
    paths = [f"paths.runs={tmp_path}", f"paths.cache={tmp_path}/cache", f"memory.history_vectors.name={encoder}"]
    return [*SMALL, *paths, "sampling.max_new_tokens=8"]


@pytest.mark.parametrize("experiment", ["pplug", "e2p"])
def test_a_run_answers_and_scores_behind_encoded_histories(experiment: str, words: list[str], tmp_path: Path) -> None:
    shown = [f"alignment.{experiment}.learning_rate=0.1", "requests.pairs=1", "requests.limit=1"]
    cfg = compose([*words, *shown], experiment)
    record = Experiment(cfg).run()
    assert "loss" in record["training"][experiment]
    assert 0 <= record["metrics"]["alignment_accuracy"]["value"] <= 1
    plain = ["requests.limit=1", "generation=plain", "memory=none", "alignment=none"]
    base = Experiment(compose([*(word for word in words if "history" not in word), *plain])).run()

    def texts(identity: str) -> dict[str, str]:
        rows = (tmp_path / identity / "answers.jsonl").read_text().splitlines()
        return {row["prompt"]: row["text"] for row in map(json.loads, rows)}

    assert texts(record["identity"]) != texts(base["identity"])
    again = Experiment.from_run(tmp_path / record["identity"], ["sampling.max_new_tokens=4"]).run()
    assert again["training"] == record["training"]
    assert len(list((tmp_path / "policies").rglob("history.safetensors"))) == 1


def test_a_prefix_holds_vectors_of_the_users_own_texts_alone(words: list[str], tmp_path: Path, tiny: Any) -> None:
    folder = tmp_path / "people"
    folder.mkdir()
    rows: dict[str, list[dict[str, Any]]] = {
        "users": [{"id": user} for user in ("ana", "Ana", "none")],
        "events": [
            {"user": user, "kind": "text", "time": n, "text": f"{WROTE[user]} {n} zq."}
            for n in range(3)
            for user in ("ana", "Ana")
        ],
        "requests": [{"user": user, "prompt": "What is tea?", "split": "test"} for user in ("ana", "Ana", "none")],
    }

    def told(kept: set[str]) -> dict[str, Any]:
        for name, some in rows.items():
            mine = [row for row in some if row.get("user", row.get("id")) in kept]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine))
        data = ["data=jsonl", f"data.path={folder}", "reward@truth=none", "memory=history_vectors"]
        kept_words = [word for word in words if not word.startswith(("data.", "debug"))]
        system = System(compose([*kept_words, *data]), tiny)
        system.prepare()
        system.generation = HistoryPrefix()
        return {request.user: system.plan(request) for request in system.requests()}

    together = told({"ana", "Ana", "none"})
    assert together["ana"] == told({"ana"})["ana"], "another user changed what stands before the prompt"
    (soft, chat), other = together["ana"].streams[0].prompt, together["Ana"].streams[0].prompt[0]
    assert isinstance(soft, Soft) and isinstance(chat, Chat) and len(soft.args) == 4
    assert isinstance(other, Soft) and not set(soft.args[1:]) & set(other.args[1:])
    assert "zq" not in repr(together) and soft.args[0] == other.args[0]
    assert [type(segment) for segment in together["none"].streams[0].prompt] == [Chat]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(
        UserError, match=r"generation=history_prefix needs policy\.heads\.history: add alignment=e2p\|pplug"
    ):
        compose(["generation=history_prefix", "memory=history_vectors"])
    with pytest.raises(UserError, match=r"alignment=pplug needs state\.history: add memory=history_vectors"):
        compose(["alignment=pplug"])
