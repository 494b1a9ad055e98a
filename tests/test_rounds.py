"""The closed loop on the tiny model: what it learns, what it may not see, and that a killed run changes nothing."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personalign import Experiment, compose, rounds
from personalign.composition.build import build
from personalign.contracts import UserError
from personalign.data.exact_pool import SHIPPED, read_pool
from personalign.feedback.simulated import SimulatedUser
from personalign.memory.logistic import laplace
from personalign.rounds import Loop, stance_errors
from personalign.runtime.rundir import RunDir
from personalign.system import System
from personalign.types import Cost, Event, Request, Response, Stance, UserState

LOOP = [
    "model=tiny",
    "precision=fp32",
    "memory=stance_inferred",
    "feedback=simulated",
    "query=d_optimal",
    "requests.limit=2",
    "requests.pairs=1",
    "data.pool=shipped",
    "data.users=4",
    "data.held_out=0",
    "data.history=0",
    "evaluation.resamples=20",
    "sampling.max_new_tokens=12",
]
# Answers of the tiny model are random bytes: these dimensions tell them apart.
CHOSEN = [
    "generation=best_of_n",
    "reward@guide=exact",
    "sampling.n=6",
    "sampling.temperature=1.0",
    "data.active=[length,structure,formality]",
]


def config(folder: Path, *more: str) -> Any:
    return compose([*LOOP, f"paths.runs={folder}", *more])


def asked(folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a run's rounds.jsonl, without their seconds and what had been kept of prompts."""
    lines = [json.loads(line) for line in (folder / record["identity"] / rounds.ROUNDS).read_text().splitlines()]
    for line in lines:
        del line["cost"]["seconds"], line["cost"]["reused_tokens"]
    return lines


def lasting(record: dict[str, Any]) -> Any:
    """What does not depend on clock and place, nor on what had been kept of prompts."""
    kept = {key: record[key] for key in ("identity", "rounds", "data_hash", "users", "flags", "training")}
    kept["cost"] = {key: record["cost"][key] for key in ("forward_tokens", "new_tokens")}
    kept = json.loads(json.dumps(kept))
    for point in kept["rounds"]:
        del point["metrics"]["tokens_per_second"]
    return kept


def curve(record: dict[str, Any], name: str) -> list[float]:
    return [point["metrics"][name]["value"] for point in record["rounds"]]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Eight users, who are asked twenty questions in five rounds."""
    folder = tmp_path_factory.mktemp("learned")
    words = [*CHOSEN, "rounds=5", "data.users=8", "feedback.beta=4.0"]
    return folder, Experiment(config(folder, *words)).run()


def test_what_users_say_makes_answers_better(learned: tuple[Path, dict[str, Any]]) -> None:
    """Nothing is known before the first round: the stance error is 1, and the first of six samples is given."""
    _, record = learned
    assert [(point["round"], point["events"]) for point in record["rounds"]] == [(n, 4.0 * n) for n in range(6)]
    error, reward = curve(record, "stance_error"), curve(record, "reward")
    assert error[0] == 1.0 and error[1] < 0.8 and error[-1] < 0.6
    assert reward[-1] > reward[0] + 0.3
    regret = [point["metrics"]["regret"]["value"] for point in record["rounds"][1:]]
    assert regret[-1] < regret[0] - 0.1
    assert record["metrics"] == record["rounds"][-1]["metrics"]


def test_questions_are_about_training_requests_and_each_about_another(learned: tuple[Path, dict[str, Any]]) -> None:
    folder, record = learned
    data = build(config(folder, "data.users=8", CHOSEN[-1]).data)
    train, held_out = ({r.id: r for r in data.requests(split)} for split in ("train", "test"))
    lines = asked(folder, record)
    ids = [question["request"] for line in lines for question in line["questions"]]
    assert len(ids) == len(set(ids)) == 8 * 20 and set(ids) <= train.keys()
    prompts = {r.messages for r in held_out.values()}
    assert not any(train[one].messages in prompts for one in ids)


def test_events_follow_one_another_and_the_history(tmp_path: Path) -> None:
    """Also where the feedback's own clock starts before the history ends, and where it starts later."""
    for start in (0.0, 50.0):
        record = Experiment(config(tmp_path, "rounds=2", "data.history=3", f"feedback.start={start}")).run()
        events = [e for line in asked(tmp_path, record) for question in line["questions"] for e in question["events"]]
        assert len({event["id"] for event in events}) == len(events) == 4 * 8
        for user in {event["user"] for event in events}:
            times = [event["time"] for event in events if event["user"] == user]
            assert times[0] >= max(5.0, start) and (np.diff(times) >= 1.0).all()


def test_round_0_is_the_run_without_rounds(tmp_path: Path) -> None:
    words = [*CHOSEN, "data.history=6"]
    alone = Experiment(config(tmp_path, *words)).run()
    first = Experiment(config(tmp_path, *words, "rounds=1")).run()["rounds"][0]["metrics"]
    assert "rounds" not in alone and "stance_error" not in alone["metrics"]
    same = {name: figure for name, figure in alone["metrics"].items() if name != "tokens_per_second"}
    assert {name: first[name] for name in same} == json.loads(json.dumps(same))
    assert first.keys() == {*alone["metrics"], "stance_error"}


def test_the_last_stance_and_the_regret_by_their_definitions(learned: tuple[Path, dict[str, Any]]) -> None:
    folder, record = learned
    lines, truth = asked(folder, record), build(record["config"]["truth"])
    dimensions = list(truth.ratings("A word."))
    errors, regrets = [], []
    for user, known in record["users"].items():
        stance = np.array([known["stance"].get(name, 0.0) for name in dimensions])
        mine = [question for line in lines for question in line["questions"] if question["user"] == user]
        rated = lambda text: np.array([truth.ratings(text)[d] for d in dimensions])  # noqa: E731
        seen, lost = np.zeros((0, len(dimensions))), []
        for question in mine:
            mean, _ = laplace(seen, np.ones(len(seen)), 1.0)
            ratings = np.array([rated(text) for text in question["answers"]])
            lost.append(float((ratings @ stance).max() - (ratings @ stance)[np.argmax(ratings @ mean)]))
            chosen, rejected = (rated(question["events"][0]["payload"][key]) for key in ("chosen", "rejected"))
            seen = np.vstack([seen, chosen - rejected])
        mean, _ = laplace(seen, np.ones(len(seen)), 1.0)
        errors.append(1.0 - mean @ stance / np.linalg.norm(mean) / np.linalg.norm(stance))
        regrets.append(np.mean(lost[-4:]))
    assert record["metrics"]["stance_error"]["value"] == pytest.approx(np.mean(errors), abs=1e-6)
    assert record["metrics"]["regret"]["value"] == pytest.approx(np.mean(regrets), abs=1e-6)


def test_a_run_that_was_killed_asks_nobody_twice_and_ends_alike(tmp_path: Path) -> None:
    """Cut off at many places: within a line of what was asked, before and after it, within the answers."""
    words = ["rounds=2", "asking.requests=2", "sampling.temperature=1.0"]
    whole = Experiment(config(tmp_path / "whole", *words)).run()
    folder = tmp_path / "whole" / whole["identity"]
    said, answers = ((folder / name).read_bytes() for name in (rounds.ROUNDS, "samples-0.jsonl"))
    first = said.index(b"\n") + 1
    cuts = [(0, 30), (first // 2, len(answers) // 3), (first, len(answers) // 3), (first, len(answers) // 2)]
    cuts += [(first + 40, 2 * len(answers) // 3), (len(said), 2 * len(answers) // 3 + 9), (len(said), len(answers))]
    for n, (kept, of_answers) in enumerate(cuts):
        broken = tmp_path / str(n)
        shutil.copytree(tmp_path / "whole", broken)
        place = broken / whole["identity"]
        (place / "record.json").unlink()
        (place / rounds.ROUNDS).write_bytes(said[:kept])
        (place / "samples-0.jsonl").write_bytes(answers[:of_answers])
        record = Experiment(config(broken, *words)).run()
        assert lasting(record) == lasting(whole)
        assert asked(broken, record) == asked(tmp_path / "whole", whole)


def test_everything_is_drawn_from_the_seed(tmp_path: Path) -> None:
    words = ["rounds=2", "query=random", "asking.requests=2"]
    found = [
        asked(tmp_path / name, Experiment(config(tmp_path / name, *words, f"seed={seed}")).run())
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    ]
    assert found[0] == found[1] != found[2]


def test_memory_and_guide_learn_of_the_truth_from_feedback_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When users choose the longer text whatever they like, users who like other things are served the same."""

    def longer(self: SimulatedUser, request: Request, responses: Sequence[Response]) -> list[Event]:
        rejected, chosen = sorted((r.text for r in responses), key=lambda text: (len(text), text))
        payload = {"prompt": request.messages[-1].content, "chosen": chosen, "rejected": rejected}
        return [Event(id=f"x/{request.id}", user=request.user, time=0.0, kind="choice", payload=payload)]

    monkeypatch.setattr(SimulatedUser, "events", longer)
    served = []
    for kind in ("signed", "dirichlet"):
        record = Experiment(config(tmp_path, *CHOSEN, "rounds=2", f"data.kind={kind}")).run()
        rows = RunDir(tmp_path, record["identity"]).responses()
        given = [(row["round"], row["request"], row["text"]) for row in rows if row["selected"]]
        served.append([asked(tmp_path, record), given])
        assert curve(record, "stance_error")[0] == 1.0
    assert served[0] == served[1]


def from_pool(
    system: System, requests: Sequence[Request], sampling: object, by: str
) -> tuple[list[list[Response]], Cost]:
    """The shipped answers, so that no model is needed."""
    pool = read_pool(SHIPPED).answers
    texts = [pool[request.messages[-1].content] for request in requests]
    made = [
        [Response(request=r.id, text=text, sample=n) for n, text in enumerate(some)]
        for r, some in zip(requests, texts, strict=True)
    ]
    return made, Cost()


def errors(folder: Path, count: int, users: int, *more: str) -> np.ndarray:
    """The stance error of each user after `count` questions, one a round."""
    words = [f"rounds={count}", "asking.requests=1", f"data.users={users}", "requests.limit=1", *more]
    system = System(config(folder, *words))
    system.prepare()
    loop = Loop(system, RunDir(folder, str(len(list(folder.iterdir())))))
    loop.run.path.mkdir()
    for _ in range(count):
        loop.ask(1)
    return np.array([error for _, error in stance_errors(system, system.requests())])


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The 99% percentile interval of a mean over users, which are drawn again."""
    rows = np.random.default_rng(0).integers(len(differences), size=(4000, len(differences)))
    low, high = np.quantile(differences[rows].mean(axis=1), [0.005, 0.995])
    return float(low), float(high)


def test_a_half_life_follows_users_who_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 30 rounds of .06 radians the stance is more than a right angle away: who forgets is closer to where."""
    monkeypatch.setattr(rounds, "offer", from_pool)
    likes = ["data.kind=dirichlet", "data.active=[length,grade,warmth,formality]", "feedback.beta=4.0"]
    drift, forget = "feedback.drift=0.06", "memory.stance_inferred.half_life=6.0"
    still, kept, forgot = (errors(tmp_path, 30, 24, *likes, *more) for more in ([], [drift], [drift, forget]))
    assert still.mean() < 0.15
    assert interval(kept - forgot)[0] > 0.05
    assert forgot.mean() < 0.4


def test_d_optimal_questions_teach_more_than_chance_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "offer", from_pool)
    chance, chosen = (errors(tmp_path, 10, 90, f"query={query}") for query in ("random", "d_optimal"))
    assert interval(chance - chosen)[0] > 0


def test_answers_that_the_boundary_refuses_are_shown_to_nobody(tmp_path: Path) -> None:
    """No word list rates above 0: nothing is left to compare, and the run says so by its events."""
    refuse = ["boundary=floor", "boundary.floors.harmlessness=1.0"]
    record = Experiment(config(tmp_path, "rounds=1", *refuse)).run()
    (line,) = asked(tmp_path, record)
    assert all(not question["answers"] and not question["events"] for question in line["questions"])
    assert record["rounds"][1]["events"] == 0 and "regret" not in record["metrics"]


def test_the_untouched_base_may_be_asked_about(tmp_path: Path) -> None:
    """The same answers as the plain plan's, which is the base where nothing was trained."""
    found = []
    for by in ("plan", "base"):
        record = Experiment(config(tmp_path, "rounds=1", f"asking.by={by}")).run()
        found.append([question["answers"] for question in asked(tmp_path, record)[0]["questions"]])
        assert record["cost"]["new_tokens"] > sum(
            row["cost"]["new_tokens"] for row in RunDir(tmp_path, record["identity"]).responses()
        ), "what was shown counts too"
    assert found[0] == found[1] and all(len(answers) > 1 for answers in found[0])


def test_held_out_users_are_not_asked_and_stay_as_they_were(tmp_path: Path) -> None:
    record = Experiment(config(tmp_path, "rounds=1", "data.held_out=1", "data.cold=1", "data.history=2")).run()
    users = {question["user"] for line in asked(tmp_path, record) for question in line["questions"]}
    assert users == {"user-00", "user-01"} and record["rounds"][1]["events"] == 4.0


def looped(folder: Path, *more: str) -> Loop:
    """After two rounds of two questions to each user about the shipped answers, with recall by match and by stance."""
    parts = ["memory=[stance_inferred,bm25]", "memory.bm25.kinds=[choice]", "generation=in_context"]
    system = System(config(folder, *parts, "rounds=2", *more))
    system.prepare()
    loop = Loop(system, RunDir(folder, "run"))
    loop.run.path.mkdir()
    for _ in range(2):
        loop.ask(1)
    return loop


def known(loop: Loop, events: Sequence[Event]) -> System:
    """A system of the same parts whose memory has met these events beside the data's, and nothing else."""
    system = System(loop.system.cfg)
    system.prepare()
    system.observe(events)
    return system


def test_a_told_pair_is_rendered_with_what_was_known_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never with its own label, nor with what was said later; the data's pairs never with anything that was told."""
    monkeypatch.setattr(rounds, "offer", from_pool)
    loop = looped(tmp_path, "asking.requests=2")
    system = loop.system
    lines = [json.loads(line) for line in (loop.run.path / rounds.ROUNDS).read_text().splitlines()]
    said = [Event(**event) for line in lines for question in line["questions"] for event in question["events"]]
    assert [pair.id for pair in loop.told] == [event.id for event in said] and len(said) == 4 * 4
    system.recall([pair.request for pair in loop.told])
    for pair, event in zip(loop.told, said, strict=True):
        prompt = "\n".join(message.content for message in system.render(pair.request))
        assert pair.chosen not in prompt and pair.rejected not in prompt
        before = [one for one in said if one.user == event.user and one.time < event.time]
        state = known(loop, before).state(replace(pair.request, time=math.inf))
        assert system.state(pair.request) == state and len(state.snippets) == min(4, len(before))
    asked_about = {pair.request.id for pair in loop.told}
    for pair in system.data.pairs("train"):
        assert pair.request.id not in asked_about or system.state(pair.request) == UserState()


def test_held_out_requests_come_after_all_that_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "offer", from_pool)
    loop = looped(tmp_path, "asking.requests=1")
    for request in loop.system.requests():
        assert len(loop.system.state(request).snippets) == 2


def test_data_without_times_are_older_than_every_question(tmp_path: Path) -> None:
    system = System(config(tmp_path))
    ask = Request(id="r", user="ana", messages=(), split="train")
    system.opened, system.clock = {"ana": 3.0}, {"ana": 7.0}
    assert [system.now(replace(ask, time=time)).time for time in (math.inf, 2.0, 5.0)] == [3.0, 2.0, 5.0]
    assert [system.now(replace(ask, time=time, split="test")).time for time in (2.0, 9.0)] == [7.0, 9.0]
    assert system.now(replace(ask, user="bob")).time == math.inf


def test_too_few_requests_are_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rounds=3 of asking.requests=4 need 12 training requests.*user-00 has 11"):
        Experiment(config(tmp_path, "rounds=3", "data.train_prompts=11")).run()


def people(folder: Path, **changes: Any) -> list[str]:
    """One user with a history up to the time 9, and three training requests."""
    ask = {"user": "ana", "prompt": "Name a tree.", "split": "test", "time": 10, **changes}
    files = {
        "users": [{"id": "ana", "truth": {"warmth": 1.0, "length": -0.5}}],
        "events": [{"user": "ana", "kind": "choice", "prompt": "Hi?", "chosen": "Ho!", "rejected": "No.", "time": 9}],
        "requests": [ask, *({"user": "ana", "prompt": f"Number {n}?", "split": "train", "time": 10} for n in range(3))],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = [word for word in LOOP if not word.startswith("data.")]
    return [*small, "data=jsonl", f"data.path={folder}", f"paths.runs={folder}/runs", "rounds=2", "asking.requests=1"]


def test_own_data_with_true_stances_are_asked_too(tmp_path: Path) -> None:
    record = Experiment(compose(people(tmp_path))).run()
    assert [point["events"] for point in record["rounds"]] == [0.0, 1.0, 2.0]


def test_a_held_out_request_amid_the_history_is_refused(tmp_path: Path) -> None:
    words = people(tmp_path, time=5)
    with pytest.raises(UserError, match="is asked before the end of their history, and in a closed loop after it"):
        Experiment(compose(words)).run()


def test_cosines_of_stances_over_all_their_dimensions() -> None:
    assert rounds.cosine(None, Stance(("a",), (1.0,))) == 0.0
    assert rounds.cosine(Stance(("a", "b"), (3.0, 4.0)), Stance(("b", "c"), (2.0, 0.0))) == pytest.approx(0.8)
    assert math.isclose(rounds.cosine(Stance(("a",), (-2.0,)), Stance(("a",), (0.5,))), -1.0)


def test_the_policy_learns_what_was_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once before the first round and once after each, from the base on; what was told before the data's pairs."""
    from personalign.alignment.dpo import DPO

    seen: list[list[str]] = []
    fit = DPO.fit

    def watched(self: DPO, policy: Any, data: Any, *more: Any) -> Any:
        assert not policy.configs
        seen.append([pair.id for pair in data.pairs("train")])
        return fit(self, policy, data, *more)

    monkeypatch.setattr(DPO, "fit", watched)
    trained = ["alignment=dpo", "alignment.dpo.steps=2", "alignment.dpo.batch_size=4", "data.min_gap=0.5"]
    words = ["rounds=2", "asking.requests=1", *trained]
    fixed = Experiment(config(tmp_path, *words)).run()
    assert len(seen) == 1
    told = Experiment(config(tmp_path, *words, "asking.refit=true")).run()
    first, *later = seen[1:]
    assert first == seen[0] and [len(ids) - len(first) for ids in later] == [4, 8]
    for n, ids in enumerate(later, start=1):
        questions = [question for line in asked(tmp_path, told)[:n] for question in line["questions"]]
        said = [event["id"] for question in questions for event in question["events"]]
        assert ids == [*said, *first]
    assert told["identity"] != fixed["identity"] and told["training"] != fixed["training"]
    assert curve(told, "reward")[0] == curve(fixed, "reward")[0]
