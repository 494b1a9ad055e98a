"""Workflows on the tiny model: their steps, their cost, what is given, and what an interruption leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from personalign import Experiment, answering, compose
from personalign.boundary.none import NoBoundary
from personalign.contracts import UserError
from personalign.decoding.batch import Batch
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.runtime.rundir import RunDir
from personalign.system import System
from personalign.types import Request, Response

TOKENS = 8
AGENT = [
    "model=tiny",
    "precision=fp32",
    f"sampling.max_new_tokens={TOKENS}",
    "requests.limit=2",
    "requests.pairs=1",
    "data.users=4",
    "data.pool=shipped",
    "decoding.batch_size=3",
    "memory=statement",
    "generation=draft_critique_revise",
]
DRAWN = ["sampling.n=2", "sampling.temperature=1.0"]


def config(folder: Path, *more: str) -> Any:
    return compose([*AGENT, f"paths.runs={folder}", *more])


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The answers of the one run in a folder, by request in the order of their numbers, without their seconds and what
    was not fed for them, which is as their company was."""
    (run,) = [path for path in folder.iterdir() if (path / "config.yaml").exists()]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in RunDir(folder, run.name).responses():
        del row["cost"]["seconds"], row["cost"]["reused_tokens"]
        found.setdefault(row["request"], []).append(row)
    return found


def figures(record: dict[str, Any]) -> Any:
    """What depends neither on the clock nor on company."""
    metrics = {name: figure for name, figure in record["metrics"].items() if name != "tokens_per_second"}
    return json.loads(json.dumps([metrics, {k: record["cost"][k] for k in ("forward_tokens", "new_tokens")}]))


@pytest.mark.parametrize("more", [[], DRAWN], ids=["greedy", "drawn"])
def test_every_sample_goes_its_own_way_as_if_it_were_alone(tmp_path: Path, more: list[str]) -> None:
    cfg = config(tmp_path, *more)
    Experiment(cfg).run()
    system = System(cfg)
    system.prepare()
    found = rows(tmp_path)
    assert len(found) == 8
    n = cfg.sampling.n
    for request in system.requests():
        made = found[request.id]
        assert [row["sample"] for row in made] == list(range(3 * n))
        assert [row["sample"] for row in made if row["selected"]] == [2 * n]
        for i in range(n):
            assert [tuple(row["tokens"]) for row in made[i::n]] == [r.tokens for r in alone(system, request, i, n)]
        drafts = {tuple(row["tokens"]) for row in made[:n]}
        assert len(drafts) == n


def alone(system: System, request: Request, sample: int, n: int) -> list[Response]:
    """One sample's draft, critique and revision, each decoded by itself."""
    decoder = Decoder(system.policy, 1)
    line = [decoder.generate([Job(request.id, system.first(request))])[sample]]
    while (plan := system.next(request, line)) is not None:
        line += decoder.generate([Job(request.id, plan, sample + n * len(line))])
    return line


@pytest.mark.parametrize("name", ["aligner", "metaaligner"])
def test_a_trained_corrector_edits_the_base_s_draft(tmp_path: Path, name: str) -> None:
    """The draft is the base's own answer; what the corrector makes of it is another one, and is given."""
    trained = ["alignment=aligner", "alignment.aligner.steps=2", "alignment.aligner.pairs=8"]
    record = Experiment(config(tmp_path / "edited", f"generation={name}", *trained)).run()
    Experiment(config(tmp_path / "plain", "generation=plain")).run()
    edited, plain = rows(tmp_path / "edited"), rows(tmp_path / "plain")
    for request, made in edited.items():
        assert [row["selected"] for row in made] == [False, True]
        assert made[0]["tokens"] == plain[request][0]["tokens"] != made[1]["tokens"]
    assert record["training"]["aligner"]["steps"] == 2.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generation=aligner"], r"needs policy\.corrector: add alignment=aligner"),
        (["alignment=aligner", "generation=plain"], r"needs prompt\.draft: use generation=aligner\|metaaligner"),
    ],
)
def test_a_corrector_and_its_prompt_need_each_other(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(tmp_path, *words)


@pytest.mark.parametrize(
    ("words", "steps"),
    [(["generation=refined_prompt"], 2), (["generation=agent", "memory=[statement,recency]"], 4)],
    ids=["refined", "agent"],
)
def test_what_comes_before_an_answer_is_no_answer(tmp_path: Path, words: list[str], steps: int) -> None:
    """The first step is not the plan; the last answer alone is given."""
    cfg = config(tmp_path, *words)
    Experiment(cfg).run()
    system = System(cfg)
    system.prepare()
    for request in system.requests():
        assert system.first(request) != system.plan(request)
        made = rows(tmp_path)[request.id]
        assert [tuple(row["tokens"]) for row in made] == [r.tokens for r in alone(system, request, 0, 1)]
        assert [row["sample"] for row in made if row["final"]] == [steps - 1]
        assert [row["sample"] for row in made if row["selected"]] == [steps - 1]


def test_the_cost_is_that_of_all_steps(tmp_path: Path) -> None:
    record = Experiment(config(tmp_path)).run()
    found = rows(tmp_path)
    total = {
        name: sum(r["cost"][name] for made in found.values() for r in made) for name in ("forward_tokens", "new_tokens")
    }
    assert {name: record["cost"][name] for name in total} == total
    answers = [json.loads(line) for line in (tmp_path / record["identity"] / "answers.jsonl").read_text().splitlines()]
    for answer in answers:
        made = found[answer["request"]]
        assert answer["cost"]["forward_tokens"] == sum(r["cost"]["forward_tokens"] for r in made)
        assert answer["cost"]["new_tokens"] == sum(r["cost"]["new_tokens"] for r in made)
    users: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        users.setdefault(answer["user"], []).append(answer)
    ratios = [
        sum(a["cost"]["forward_tokens"] for a in given) / sum(len(a["tokens"]) for a in given)
        for given in users.values()
    ]
    assert record["metrics"]["forward_tokens_per_token"]["value"] == pytest.approx(sum(ratios) / len(ratios))


@pytest.mark.parametrize(("budget", "steps"), [(1, 1), (TOKENS + 1, 2)])
def test_where_the_budget_ends_before_a_revision_the_draft_is_given(tmp_path: Path, budget: int, steps: int) -> None:
    record = Experiment(config(tmp_path / "agent", f"generation.budget={budget}")).run()
    prompted = Experiment(config(tmp_path / "prompted", "generation=preference_prompt")).run()
    made = rows(tmp_path / "agent")
    assert max(len(of_request) for of_request in made.values()) == steps
    assert all([row["sample"] for row in of_request if row["selected"]] == [0] for of_request in made.values())
    assert record["metrics"]["reward"] == prompted["metrics"]["reward"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("whole")
    record = Experiment(config(folder, *DRAWN)).run()
    return figures(record), rows(folder)


def broken_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int, more: Sequence[str] = ()
) -> None:
    """Run until a method is called for the `at`-th time, where the power fails."""
    calls = iter(range(at))
    genuine = getattr(owner, name)

    def failing(self: Any, *args: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return genuine(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(KeyboardInterrupt):
            Experiment(config(folder, *DRAWN, *more)).run()


@pytest.mark.parametrize("step", [1, 4])
def test_interrupted_between_steps_and_run_again_gives_the_same(
    whole: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    broken_off(tmp_path, monkeypatch, Batch, "start", step)
    record = Experiment(config(tmp_path, *DRAWN)).run()
    assert (figures(record), rows(tmp_path)) == whole


@pytest.mark.parametrize("row", [1, 5, 6, 9])
def test_interrupted_while_answers_are_written_and_run_again_gives_the_same(
    whole: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    broken_off(tmp_path, monkeypatch, RunDir, "append_response", row)
    record = Experiment(config(tmp_path, *DRAWN)).run()
    assert (figures(record), rows(tmp_path)) == whole


@pytest.mark.parametrize("budget", [2000, 4000, 100_000])
def test_rows_that_enter_as_others_leave_change_no_answer(whole: tuple[Any, Any], tmp_path: Path, budget: int) -> None:
    record = Experiment(config(tmp_path, *DRAWN, *continuous(budget))).run()
    assert (figures(record), rows(tmp_path)) == (whole[0], nearly(whole[1]))


@pytest.mark.parametrize("row", [0, 12, 20])
@pytest.mark.parametrize("again", ["continuous", "fixed"])
def test_interrupted_among_rows_that_come_and_go_only_what_is_missing_is_made(
    whole: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int, again: str
) -> None:
    """Six answers to a request, kept together, while others are in flight; samples are drawn by seeds of their own."""
    broken_off(tmp_path, monkeypatch, RunDir, "append_response", row, continuous(2000))
    file = next(tmp_path.glob("*/config.yaml")).parent / "samples-0.jsonl"
    written = file.read_text().splitlines() if row else []
    assert sum(json.loads(line)["selected"] for line in written) == row // 6
    record = Experiment(config(tmp_path, *DRAWN, *(continuous(2000) if again == "continuous" else ()))).run()
    assert (figures(record), rows(tmp_path)) == (whole[0], nearly(whole[1]))
    lines = file.read_text().splitlines()
    assert lines[:row] == written and len(lines) == 8 * 6 + row % 6


def test_ranks_share_the_requests(whole: tuple[Any, Any], tmp_path: Path) -> None:
    system = System(config(tmp_path, *DRAWN, *continuous(2000)))
    system.prepare()
    system.learned()
    (tmp_path / "run").mkdir()
    for rank in (1, 0):
        answering.answer(system, RunDir(tmp_path, "run", rank), system.requests(), rank, 2)
        lines = (tmp_path / "run" / f"samples-{rank}.jsonl").read_text().splitlines()
        assert {json.loads(line)["request"] for line in lines} == {r.id for r in system.requests()[rank::2]}
    found = {(row["request"], row["sample"]): row["tokens"] for row in RunDir(tmp_path, "run").responses()}
    assert found == {(name, row["sample"]): row["tokens"] for name, made in whole[1].items() for row in made}


def continuous(budget: int) -> list[str]:
    return ["decoding.grouping=continuous", f"decoding.token_budget={budget}"]


def nearly(found: dict[str, list[dict[str, Any]]]) -> Any:
    """The same tokens, and log-probabilities up to rounding."""
    return {
        name: [{**row, "logprobs": pytest.approx(row["logprobs"], abs=1e-3)} for row in made]
        for name, made in found.items()
    }


def test_the_boundary_meets_the_samples_answers_alone_and_may_refuse_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample's final answer, and its draft where that is not admitted; never its critique, which is no answer."""
    met: dict[str, list[int]] = {}

    def strict(self: NoBoundary, request: Request, responses: Sequence[Response], _: object) -> Sequence[Response]:
        met.setdefault(request.id, []).extend(response.sample for response in responses)
        return []

    monkeypatch.setattr(NoBoundary, "admit", strict)
    record = Experiment(config(tmp_path, *DRAWN)).run()
    assert list(met.values()) == [[4, 5, 0, 1]] * 8
    given = [row for made in rows(tmp_path).values() for row in made if row["selected"]]
    assert len(given) == 8 and all((row["text"], row["stop"], row["sample"]) == ("", "refused", 6) for row in given)
    assert record["metrics"]["refusal_rate"]["value"] == 1.0


def test_what_the_boundary_admits_is_given_in_place_of_a_final_answer_that_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft where the revision is not admitted, and only for that sample: the other one's revision comes first."""
    kept: set[int] = set()

    def choosy(self: NoBoundary, request: Request, responses: Sequence[Response], _: object) -> Sequence[Response]:
        return [response for response in responses if response.sample in kept]

    monkeypatch.setattr(NoBoundary, "admit", choosy)
    for n, (admitted, given) in enumerate([({0, 1, 5}, 0), ({1, 5, 2, 3}, 5), ({1, 3}, 1), ({2, 3}, 6)]):
        kept.clear()
        kept.update(admitted)
        record = Experiment(config(tmp_path / str(n), *DRAWN)).run()
        found = rows(tmp_path / str(n)).values()
        assert all([row["sample"] for row in made if row["selected"]] == [given] for made in found)
        assert all({row["sample"] for row in made if row["final"]} == {4, 5, given} for made in found)
        assert record["metrics"]["refusal_rate"]["value"] == float(given == 6)
