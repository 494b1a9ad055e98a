"""A run on a real endpoint: the embedded model behind transformers' own server answers as our decoder does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from serving import Served

from personalign import Experiment, compose

pytestmark = [pytest.mark.slow, pytest.mark.model]

SMALL = [
    "precision=fp32",
    "sampling.max_new_tokens=24",
    "requests.limit=1",
    "requests.pairs=1",
    "data.users=4",
    "data.pool=shipped",
    "memory=statement",
    "generation=preference_prompt",
    "reward@guide=none",
]


def answers(record: dict[str, Any], folder: Path) -> list[tuple[str, str, str, int]]:
    rows = map(json.loads, (folder / record["identity"] / "answers.jsonl").read_text().splitlines())
    return [(row["request"], row["text"], row["stop"], row["cost"]["new_tokens"]) for row in rows]


def test_greedy_answers_are_those_of_our_decoder(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PERSONALIGN_MODEL_URL", served.url)
    cache = Path(os.environ.get("PERSONALIGN_CACHE", "~/.cache/personalign")).expanduser()
    own = Experiment(compose([*SMALL, "model=smollm2", f"paths.runs={tmp_path}", f"paths.cache={cache}"])).run()
    words = ["model=endpoint", f"model.model={served.folder}", f"model.cache={tmp_path / 'cache'}"]
    remote = Experiment(compose([*SMALL, *words, f"paths.runs={tmp_path}"])).run()
    assert len(answers(own, tmp_path)) == 4
    assert answers(remote, tmp_path) == answers(own, tmp_path)
    assert "perplexity" in own["metrics"] and "perplexity" not in remote["metrics"]
    assert served.asked() >= 4
