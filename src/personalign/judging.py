"""From answers to figures: true rewards, fluency under the base, held-out pairs, and what controls for length."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from personalign.decoding.scoring import Reading, score_readings
from personalign.evaluation.text import words
from personalign.results import Calibration, ChoiceScore, Figure, Judged, JudgedPair
from personalign.runtime.files import write_atomic
from personalign.runtime.rundir import RunDir
from personalign.system import System, base_plan
from personalign.types import Cost, Pair, Request, Response, Score, UserState

# The given answers with all that was measured on them, one a line.
ANSWERS = "answers.jsonl"


def judge(system: System, run: RunDir, requests: Sequence[Request]) -> dict[str, Figure]:
    """Measure the answers that `run` holds, write them with their measures to answers.jsonl, return the figures."""
    samples = _samples(run, system.round)
    answered = list(zip(requests, given(run, requests, system.round), strict=True))
    made = [[row["text"] for row in samples[r.id] if row["final"] and row["stop"] != "refused"] for r in requests]
    bounds = sample_rewards(system, list(zip(requests, made, strict=True)))
    answers = [
        replace(one, worst=least, best=most)
        for one, (least, most) in zip(judged(system, answered), bounds, strict=True)
    ]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(answers))
    write_atomic(run.path / ANSWERS, "".join(lines))
    pairs = judged_pairs(system)
    return system.evaluation.measure(answers, pairs, calibration(system))


def given(run: RunDir, requests: Sequence[Request], round: int) -> list[Response]:
    """The answer that `run` holds for each request in a round, with the cost of all that was made for it."""
    samples = _samples(run, round)
    return [_given(samples[request.id]) for request in requests]


def _samples(run: RunDir, round: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of all answers of a round by request."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in run.responses():
        if row["round"] == round:
            found.setdefault(row["request"], []).append(row)
    return found


def _given(rows: Sequence[dict[str, Any]]) -> Response:
    """The answer that was given, with the cost of all that was made for it."""
    row = next(row for row in rows if row["selected"])
    return replace(_response(row), cost=sum((_response(row).cost for row in rows), Cost()))


def _response(row: dict[str, Any]) -> Response:
    return Response.from_json({k: v for k, v in row.items() if k not in ("user", "final", "selected")})


def judged(system: System, answered: Sequence[tuple[Request, Response]]) -> list[Judged]:
    """Every answer with its true score, where truth is known, its universal values, where something scores them, and
    its fluency under the untouched base. A refusal has no true score: it is no answer, least of all a short one."""
    truths = true_scores(system, [(request, [] if r.refused else [r.text]) for request, r in answered])
    states = [system.true_state(request) for request, _ in answered]
    values = system.values([(request, [r.text]) for request, r in answered]) or [[] for _ in answered]
    nll = base_nll(system, answered)
    choices = choice_scores(system, [request for request, _ in answered])
    return [
        Judged(
            request=request,
            response=response,
            truth=scores[0] if scores else None,
            stance=state.stance if state else None,
            universal=universal[0] if universal else None,
            base_nll=loss,
            base_tokens=len(response.tokens),
            choices=chosen,
        )
        for (request, response), scores, state, universal, loss, chosen in zip(
            answered, truths, states, values, nll, choices, strict=True
        )
    ]


def sample_rewards(
    system: System, made: Sequence[tuple[Request, Sequence[str]]]
) -> list[tuple[float, float] | tuple[None, None]]:
    """The least and the largest true reward among each request's samples: what universal values have cost is measured
    from there.

    None where there was no choice, where the truth is not known, or where nothing scores universal values.
    """
    if system.universal is None:
        return [(None, None)] * len(made)
    asked = [(request, texts if len(texts) > 1 else []) for request, texts in made]
    totals = [[score.total for score in some] for some in true_scores(system, asked)]
    return [(min(some), max(some)) if some else (None, None) for some in totals]


def true_scores(system: System, asked: Sequence[tuple[Request, Sequence[str]]]) -> list[list[Score]]:
    """The true reward of texts, one list per request; an empty list where the truth is not known."""
    found: list[list[Score]] = [[] for _ in asked]
    if system.truth is None:
        return found
    states = [system.true_state(request) for request, _ in asked]
    known = [i for i, state in enumerate(states) if state is not None]
    scored = system.truth.score_all([(asked[i][0], states[i] or UserState(), asked[i][1]) for i in known])
    for i, scores in zip(known, scored, strict=True):
        found[i] = scores
    return found


def base_nll(system: System, answered: Sequence[tuple[Request, Response]]) -> list[float | None]:
    """-log p(answer | plain prompt) under the base without any adapter, end of text included; in nats. None where the
    model is elsewhere."""
    if system.remote is not None:
        return [None] * len(answered)
    readings = [Reading(request.id, base_plan(request), response.tokens) for request, response in answered]
    return [-value for value in score_readings(system.policy, readings, "fluency")]


def choice_scores(system: System, requests: Sequence[Request]) -> list[tuple[ChoiceScore, ...]]:
    """What the system's plan makes of every choice of each request; () for a request without choices, and where the
    model is elsewhere."""
    if system.remote is not None:
        return [()] * len(requests)
    texts = [[tuple(system.policy.encode_answer(text)[:-1]) for text in request.choices] for request in requests]
    plans = [system.plan(request) if some else None for request, some in zip(requests, texts, strict=True)]
    readings = [
        Reading(request.id, plan, ids)
        for request, plan, some in zip(requests, plans, texts, strict=True)
        if plan is not None
        for ids in some
    ]
    values = iter(score_readings(system.policy, readings, "choices"))
    return [tuple(ChoiceScore(next(values), len(ids)) for ids in some) for some in texts]


def judged_pairs(system: System) -> list[JudgedPair]:
    """Held-out pairs with the guide's margin, at most `requests.pairs` of each user."""
    if system.guide is None:
        return []
    pairs = list(_first(system.data.pairs("test"), system.cfg.requests.pairs))
    system.recall([p.request for p in pairs])
    scores = system.guide.score_all([(p.request, system.state(p.request), (p.chosen, p.rejected)) for p in pairs])
    return [JudgedPair(pair=p, margin=c.total - r.total) for p, (c, r) in zip(pairs, scores, strict=True)]


def _first(pairs: Sequence[Pair], limit: int | None) -> Iterable[Pair]:
    count: dict[str, int] = {}
    for pair in pairs:
        count[pair.request.user] = count.get(pair.request.user, 0) + 1
        if limit is None or count[pair.request.user] <= limit:
            yield pair


def calibration(system: System) -> list[Calibration]:
    """Length and true reward of the answers in validation pairs: what a reward is controlled with."""
    pairs = system.data.pairs("validation")
    scored = true_scores(system, [(p.request, (p.chosen, p.rejected)) for p in pairs])
    return [
        Calibration(user=pair.request.user, words=len(words(text)), reward=score.total)
        for pair, scores in zip(pairs, scored, strict=True)
        for text, score in zip((pair.chosen, pair.rejected), scores, strict=False)
    ]


def rows(answers: Sequence[Judged]) -> Iterable[dict[str, Any]]:
    """One line per given answer for reports: who asked what, the answer, its true reward and its fluency."""
    for item in answers:
        yield {
            **item.response.to_json(),
            "user": item.request.user,
            "prompt": item.request.messages[-1].content,
            "truth": None if item.truth is None else asdict(item.truth),
            "universal": None if item.universal is None else dict(item.universal.dimensions),
            "base_nll": item.base_nll,
            "base_tokens": item.base_tokens,
            **({"choices": [asdict(choice) for choice in item.choices]} if item.choices else {}),
        }
