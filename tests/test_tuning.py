"""The strength of generation chosen on validation requests: which, that nothing else is looked at, and resuming."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from personalign import Experiment, compose, experiment
from personalign.boundary.none import NoBoundary
from personalign.commands.status import _tuning
from personalign.composition.identity import identity
from personalign.composition.validate import IllegalComposition
from personalign.contracts import Reward, UserError
from personalign.data.exact_users import ExactUsers
from personalign.judging import base_nll
from personalign.reporting.collect import collect
from personalign.reporting.table import notes
from personalign.runtime.rundir import RunDir
from personalign.system import System
from personalign.types import Request, Response, Score, UserState

SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=8",
    "requests.limit=1",
    "requests.pairs=1",
    "data.users=4",
    "data.pool=shipped",
    "decoding.batch_size=4",
    "evaluation.resamples=20",
    "memory=statement",
    "generation=cos",
    "tune.requests=2",
]
TUNED = "tune.strengths=[0,1,-2]"


def config(folder: Path, *more: str) -> Any:
    return compose([*SMALL, f"paths.runs={folder}", *more])


def run(folder: Path, *more: str) -> tuple[dict[str, Any], RunDir]:
    record = Experiment(config(folder, *more)).run()
    return record, RunDir(folder, record["identity"])


def given(run: RunDir) -> list[dict[str, Any]]:
    """The answers of a run without their seconds."""
    rows = [row for row in run.responses() if row["selected"]]
    return [{**row, "cost": {**row["cost"], "seconds": 0.0}} for row in rows]


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    kept = {key: record[key] for key in ("metrics", "training", "users", "data_hash")}
    kept["metrics"] = {k: v for k, v in kept["metrics"].items() if k != "tokens_per_second"}
    return kept


def validation(folder: Path, cfg: Any, strength: float) -> list[tuple[Request, dict[str, Any]]]:
    """The validation requests with what was answered at a strength, by what the files say."""
    rows = {row["request"]: row for row in RunDir(folder / "tuning", repr(strength)).responses()}
    data = System(cfg).data
    return [(request, rows[request.id]) for request in data.requests("validation") if request.id in rows]


def test_the_best_on_validation_answers_the_held_out_requests(tmp_path: Path) -> None:
    """By definition: p^u . r(y), its mean over users, worked out from the files; and as if it had been set by hand."""
    record, place = run(tmp_path, TUNED)
    told, cfg = record["tuning"], config(tmp_path, TUNED)
    system = System(cfg)
    system.prepare()
    means = {}
    for strength in (0.0, 1.0, -2.0):
        by_user = defaultdict(list)
        for request, row in validation(place.path, cfg, strength):
            state = system.true_state(request)
            assert state is not None and state.stance is not None and system.truth is not None
            (score,) = system.truth.score(request, state, [row["text"]])
            by_user[request.user].append(state.stance.dot(score.dimensions))
        assert {len(own) for own in by_user.values()} == {2} and len(by_user) == 4
        means[strength] = sum(sum(own) / len(own) for own in by_user.values()) / len(by_user)
    assert {one["strength"]: one["reward"]["value"] for one in told["tried"]} == pytest.approx(means)
    assert len(set(means.values())) == 3, "the strengths must tell"
    assert told["chosen"] == max(means, key=lambda strength: means[strength])
    assert (told["key"], told["by"], told["base"]) == ("generation.strength", "truth", None)

    by_hand, other = run(tmp_path, f"generation.strength={told['chosen']}")
    assert given(place) == given(other) and lasting(record) == lasting(by_hand)
    assert "tuning" not in by_hand and by_hand["identity"] != record["identity"]
    assert record["cost"]["new_tokens"] == by_hand["cost"]["new_tokens"], "what was tried is told apart"
    assert all(one["cost"]["new_tokens"] > 0 for one in told["tried"])


def test_its_perplexity_is_that_of_the_record(tmp_path: Path) -> None:
    """exp of a user's nats for each token, the geometric mean over users: as evaluation has it of held-out answers."""
    record, place = run(tmp_path, TUNED)
    system = System(config(tmp_path, TUNED))
    made = validation(place.path, system.cfg, 1.0)
    nll = base_nll(
        system, [(request, Response(request=request.id, text="", tokens=tuple(row["tokens"]))) for request, row in made]
    )
    by_user: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for (request, row), loss in zip(made, nll, strict=True):
        by_user[request.user].append((loss, len(row["tokens"])))
    each = [sum(loss for loss, _ in own) / sum(n for _, n in own) for own in by_user.values()]
    assert record["tuning"]["tried"][1]["perplexity"] == pytest.approx(math.exp(sum(each) / len(each)))


def test_nothing_of_the_test_split_is_asked_for_before_the_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that would fail if they were: requests and pairs both. What was chosen cannot depend on them. Before, a run
    makes sure that there are any, and this alone is let through here."""
    monkeypatch.setattr(experiment, "_check_held_out", lambda system: None)
    chosen: list[float] = []
    for name in ("requests", "pairs"):
        real = getattr(ExactUsers, name)

        def guarded(self: ExactUsers, split: str, real: Any = real) -> Any:
            assert split != "test" or len(chosen) == 3 + 1, "held-out data were looked at before the choice"
            return real(self, split)

        monkeypatch.setattr(ExactUsers, name, guarded)
    at = System.answer_at

    def noted(self: System, strength: float | None) -> None:
        chosen.extend([] if strength is None else [strength])
        at(self, strength)

    monkeypatch.setattr(System, "answer_at", noted)
    record, _ = run(tmp_path, TUNED, "alignment=dpo", "alignment.dpo.steps=1", "alignment.dpo.batch_size=2")
    assert chosen == [0.0, 1.0, -2.0, record["tuning"]["chosen"]] and record["training"]


class Crash(BaseException):
    """Not one that anybody handles, as a kill is not."""


@pytest.mark.parametrize("torn", [False, True])
def test_killed_at_any_write_and_run_again_gives_the_same(
    torn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (TUNED, "tune.perplexity=1e6", "sampling.temperature=1.0", "sampling.n=2")
    whole, there = run(tmp_path / "whole", *more)
    from personalign import tuning
    from personalign.runtime import rundir

    left = [0]
    for module in (rundir, tuning):
        real = module.append_line

        def append(path: Path, text: str, *, fsync: bool = False, real: Any = real) -> None:
            left[0] -= 1
            if left[0] == 0:
                if torn:
                    with open(path, "a") as stream:
                        stream.write(text[: len(text) // 2])
                raise Crash
            real(path, text, fsync=fsync)

        monkeypatch.setattr(module, "append_line", append)
    kills = 0
    for count in (2, 9, 18, 1, 17, 20, 0):
        left[0] = count
        try:
            record, place = run(tmp_path / "broken", *more)
            break
        except Crash:
            kills += 1
    assert kills >= 4
    assert (place.path / "tuning.jsonl").read_bytes() == (there.path / "tuning.jsonl").read_bytes()
    assert record["tuning"] == whole["tuning"] and lasting(record) == lasting(whole)
    assert given(place) == given(there)


def test_a_value_that_is_done_is_not_answered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, place = run(tmp_path, TUNED)
    (place.path / "record.json").unlink()
    place.set_status("failed")
    monkeypatch.setattr("personalign.tuning.answer", lambda *_: pytest.fail("answered again"))
    assert run(tmp_path, TUNED)[0]["tuning"] == record["tuning"]


class Spy(Reward):
    """A guide that likes short answers and remembers what it was told, and what the system would plan."""

    def __init__(self) -> None:
        self.seen: list[tuple[UserState, Any]] = []

    def bind(self, policy: Any, plan: Any) -> None:
        self._plan = plan

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        self.seen.append((state, [stream.weight for stream in self._plan(request).streams]))
        return [Score(-float(len(text))) for text in responses]


def test_the_guide_may_choose_and_measures_every_strength_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy, prepare = Spy(), System.prepare

    def prepared(self: System) -> None:
        self.guide = spy
        prepare(self)

    monkeypatch.setattr(System, "prepare", prepared)
    record, place = run(tmp_path, TUNED, "tune.by=guide", "requests.pairs=1", "generation.strength=0.5")
    told = record["tuning"]
    assert (
        told["by"] == "guide"
        and told["chosen"] == max(told["tried"], key=lambda one: one["reward"]["value"])["strength"]
    )
    while_tuning = spy.seen[: 3 * 4 * 2]
    assert all(state.stance is None and state.profile for state, _ in while_tuning), "the guide sees what is recalled"
    assert {tuple(weights) for _, weights in while_tuning} == {(1.5, -0.5)}, "one plan for all"
    lengths = [len(row["text"]) for _, row in validation(place.path, config(tmp_path, TUNED), 1.0)]
    assert told["tried"][1]["reward"]["value"] == pytest.approx(-sum(lengths) / len(lengths))


def test_strengths_that_are_not_fluent_are_not_chosen(tmp_path: Path) -> None:
    record, _ = run(tmp_path, TUNED, "tune.perplexity=1e6")
    base, tried = record["tuning"]["base"], record["tuning"]["tried"]
    assert base["strength"] is None and base["perplexity"] > 1 and base["reward"]["n"] == 8
    least = min(tried, key=lambda one: one["perplexity"])
    best = max(tried, key=lambda one: one["reward"]["value"])
    assert least is not best, "else the limit changes nothing"
    limit = 1.0001 * least["perplexity"] / base["perplexity"]
    assert run(tmp_path, TUNED, f"tune.perplexity={limit}")[0]["tuning"]["chosen"] == least["strength"]
    with pytest.raises(UserError, match=r"no strength of generation\.strength keeps .* within tune\.perplexity=0\.01 "):
        run(tmp_path, TUNED, "tune.perplexity=0.01")


def test_a_strength_is_not_chosen_for_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strength that is best where all is answered refuses all but the first request: the next best is taken."""
    tried = run(tmp_path / "free", TUNED)[0]["tuning"]["tried"]
    best, second, _ = (one["strength"] for one in sorted(tried, key=lambda one: -one["reward"]["value"]))
    now: list[float | None] = [None]
    at, kept = System.answer_at, set()

    def noted(self: System, strength: float | None) -> None:
        now.append(strength)
        at(self, strength)

    def picky(self: NoBoundary, request: Request, responses: Sequence[Response], _: object) -> Sequence[Response]:
        return [] if now[-1] == best and request.id not in kept else responses

    monkeypatch.setattr(System, "answer_at", noted)
    monkeypatch.setattr(NoBoundary, "admit", picky)
    with pytest.raises(UserError, match=r"refuses every validation request at a strength of generation\.strength"):
        run(tmp_path / "none", TUNED)
    kept.add(System(config(tmp_path, TUNED)).requests("validation")[0].id)
    told = run(tmp_path / "some", TUNED)[0]["tuning"]
    assert told["chosen"] == second
    assert [one.get("refused", 0) for one in told["tried"]] == [7 * (one["strength"] == best) for one in told["tried"]]
    assert [one["reward"]["n"] for one in told["tried"]] == [8 - one.get("refused", 0) for one in told["tried"]]


def test_data_without_validation_requests_are_said_plainly_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ExactUsers.requests
    monkeypatch.setattr(ExactUsers, "requests", lambda self, split: [] if split == "validation" else real(self, split))
    monkeypatch.setattr(Experiment, "_align", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match=r"needs validation requests, and data=exact_users has none: .*strengths=null"):
        run(tmp_path, TUNED)


def test_where_nobody_knows_the_truth_the_guide_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "true_state", lambda self, request: None)
    with pytest.raises(UserError, match=r"nobody knows the true reward .* use tune\.by=guide"):
        run(tmp_path, TUNED)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["generation=plain"],
            "generation=plain has no strength to tune: set it to null, or use generation=amulet|cope|",
        ),
        (
            ["generation=genarm", "memory=stance_stated", "alignment=genarm"],
            r"tune.strengths.2=-2(\.0)?: must be at least 0",
        ),
        (["tune.strengths=[1,strong]"], "tune.strengths.1=.strong.: must be a whole number or a number"),
        (["tune.strengths=[]"], r"^tune\.strengths=\[\]: must be a list with something in it$"),
        (["tune.strengths=[1,1.0]"], "tune.strengths names 1.0 twice"),
        (["tune.by=me"], "^tune.by=.me.: must be 'truth' or 'guide'$"),
        (["tune.by=guide", "reward@guide=none"], "tune.by=guide needs reward.guide"),
        (["tune.requests=0"], "tune.requests=0: must be greater|tune.requests=0: must be at least 1"),
    ],
)
def test_what_cannot_be_tuned_is_refused(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        config(tmp_path, TUNED, *overrides)


def test_a_method_without_a_strength_is_left_out_of_a_sweep(tmp_path: Path) -> None:
    from personalign.composition.sweeps import read

    path = tmp_path / "grid.yaml"
    path.write_text(f"base: [memory=statement, '{TUNED}']\ngrid: {{generation: [cos, preference_prompt, amulet]}}\n")
    found = read(path, ["tune.strengths=[0.5,1]"])
    assert [cell.name for cell in found.cells] == ["cos", "amulet"]
    assert "generation=preference_prompt has no strength to tune" in found.left_out["preference_prompt"]
    with pytest.raises(IllegalComposition):
        config(tmp_path, TUNED, "generation=preference_prompt")


def test_what_is_tuned_is_part_of_a_run_s_name_where_something_is(tmp_path: Path) -> None:
    plain = config(tmp_path)
    assert identity(plain) == identity(config(tmp_path, "tune.requests=5", "tune.by=guide"))
    names = {
        identity(config(tmp_path, *more))
        for more in ([], [TUNED], [TUNED, "tune.requests=5"], [TUNED, "tune.by=guide"], ["tune.strengths=[0,1]"])
    }
    assert len(names) == 5
    assert identity(config(tmp_path, TUNED)) == identity(config(tmp_path, "tune.strengths=[0.0,1.0,-2.0]"))


def test_report_and_status_say_what_was_chosen(tmp_path: Path) -> None:
    record, place = run(tmp_path, TUNED)
    told = record["tuning"]
    line = next(line for line in notes(collect(place.path)) if "chosen by" in line)
    assert f"generation.strength = {told['chosen']:g}, chosen by true reward on 8 validation answers: 0 gives" in line
    assert _tuning(place) == f"generation.strength = {told['chosen']:g}"
    _, bounded = run(tmp_path, TUNED, "tune.perplexity=1e6")
    assert "8 validation answers of a perplexity of at most 1e+06 x the base's" in " ".join(
        notes(collect(bounded.path))
    )
    (place.path / "record.json").unlink()
    assert _tuning(place) == "3 strengths tried"
    assert json.dumps(told)  # plain data


@pytest.mark.slow
def test_two_ranks_choose_as_one(tmp_path: Path) -> None:
    one, there = run(tmp_path / "one", TUNED)
    two, place = run(tmp_path / "two", TUNED, "trainer=ddp_cpu", "devices=2")
    assert two["tuning"]["chosen"] == one["tuning"]["chosen"]
    assert [row["text"] for row in given(place)] == [row["text"] for row in given(there)]
    folders = sorted(path.name for path in (place.path / "tuning" / "1.0").iterdir())
    assert folders == ["samples-0.jsonl", "samples-1.jsonl"]
