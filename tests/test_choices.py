"""Multiple choice by likelihood: the log-probability of every choice under the plan, and its figures in a record."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from personalign import Experiment, compose
from personalign.judging import choice_scores
from personalign.plans import Chat, Plan, Stream
from personalign.policy.lora import LoRAConfig, parameters
from personalign.policy.policy import Policy
from personalign.system import System
from personalign.types import Message, Messages, Request

ASKED = Request(
    id="r",
    user="u",
    messages=(Message("user", "Which?"),),
    choices=("Cheese.", "No cheese at all.", "?"),
    references=("?",),
)


def naive(policy: Policy, stream: Stream, text: str) -> float:
    prompt, answer = policy.encode(stream.prompt[0].messages), policy.encode_answer(text)[:-1]  # type: ignore[union-attr]
    with policy.using(stream.deltas), torch.no_grad():
        logp = policy.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(logp[len(prompt) - 1 + i, t].item() for i, t in enumerate(answer))


def test_a_choice_is_scored_by_all_streams_of_the_plan(tiny: Policy) -> None:
    tiny.add_adapter("one", LoRAConfig(4, 8, 0.0, ("q_proj",)))
    for p in parameters(tiny.model, "one"):
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(p.shape[0]))
    told: Messages = (Message("system", "No cheese."), *ASKED.messages)
    streams = (Stream((Chat(ASKED.messages),), -0.5), Stream((Chat(told),), 1.5, (("one", 1.0),)))
    system = cast(System, SimpleNamespace(policy=tiny, remote=None, plan=lambda request: Plan(streams)))
    plain = Request(id="s", user="u", messages=ASKED.messages, references=("x",))
    none, scores, again = choice_scores(system, [plain, ASKED, ASKED])
    assert none == () and scores == again and len(scores) == 3
    for text, score in zip(ASKED.choices, scores, strict=True):
        assert score.logprob == pytest.approx(sum(s.weight * naive(tiny, s, text) for s in streams), abs=1e-3)
        assert score.tokens == len(tiny.encode_answer(text)) - 1


def write(folder: Path, **files: list[dict[str, Any]]) -> Path:
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def record(tmp_path: Path, *more: str) -> dict[str, Any]:
    small = [
        "model=tiny",
        "precision=fp32",
        "sampling.max_new_tokens=4",
        "reward@truth=none",
        f"paths.runs={tmp_path}/runs",
    ]
    return Experiment(compose([*small, *more])).run()


def test_a_record_has_the_figures_of_the_answers_that_were_written(tmp_path: Path) -> None:
    rows = [
        {
            "user": user,
            "prompt": f"Number {n}: yes or no?",
            "choices": ["yes", "no"],
            "references": [right],
            "split": "test",
        }
        for n, (user, right) in enumerate([("ana", "yes"), ("ana", "no"), ("ben", "no")])
    ]
    rows.append({"user": "ben", "prompt": "Say it.", "references": ["it"], "split": "test"})
    found = record(tmp_path, "data=jsonl", f"data.path={write(tmp_path, requests=rows)}")
    figures = found["metrics"]
    lines = (tmp_path / "runs" / found["identity"] / "answers.jsonl").read_text().splitlines()
    written = [row["choices"] for row in map(json.loads, lines) if "choices" in row]
    assert len(lines) == 4 and len(written) == 3
    for name, lengths in (("choice_accuracy", (3, 2)), ("choice_accuracy_raw", (1, 1))):
        assert [tuple(c["tokens"] for c in row) for row in written] == [(3, 2)] * 3, "the tiny model reads bytes"
        says_yes = [row[0]["logprob"] / lengths[0] > row[1]["logprob"] / lengths[1] for row in written]
        right = [yes == wanted for yes, wanted in zip(says_yes, (True, False, False), strict=True)]
        assert figures[name]["value"] == pytest.approx(((right[0] + right[1]) / 2 + right[2]) / 2)
    counts = {name: (figures[name]["n"], figures[name]["users"]) for name in figures}
    assert counts["choice_accuracy"] == counts["label_accuracy"] == counts["label_f1"] == (3, 2)
    assert counts["rougeL"] == counts["bleu"] == (1, 1) and not {"label_mae", "label_rmse"} & figures.keys()
    assert all(figures[name]["low"] <= figures[name]["high"] for name in counts)


def test_lamp_and_prefeval_run(tmp_path: Path) -> None:
    profile = [{"id": str(n), "text": f"Thing {n} broke.", "score": "1"} for n in range(3)]
    asked = "just answer with 1, 2, 3, 4, or 5 without further explanation. review: It broke."
    questions = [{"id": str(n), "input": asked, "profile": profile} for n in range(3)]
    golds = [{"id": str(n), "output": "1"} for n in range(3)]
    (tmp_path / "dev_questions.json").write_text(json.dumps(questions))
    (tmp_path / "dev_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": golds}))
    retrieval = ["memory=bm25", "generation=retrieval_prompt"]
    lamp = record(tmp_path, "data=lamp", f"data.path={tmp_path}", "data.task=3", *retrieval)["metrics"]
    measured = ("label_accuracy", "label_f1", "label_mae", "label_rmse", "choice_accuracy")
    assert {lamp[name]["n"] for name in measured} == {3}
    assert "rouge1" not in lamp and "reward" not in lamp
    row = {
        "preference": "I hate cheese.",
        "question": "Pizza?",
        "classification_task_options": ["Marinara.", "Quattro."],
    }
    (tmp_path / "food.json").write_text(json.dumps([row]))
    prompted = ["memory=statement", "generation=preference_prompt"]
    prefeval = record(tmp_path, "data=prefeval", f"data.path={tmp_path}/food.json", *prompted)["metrics"]
    assert prefeval["choice_accuracy"]["n"] == 1 and "label_accuracy" not in prefeval
