"""From requests to answers: plans decoded group by group, each group kept as soon as it is whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from typing import Literal

from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.runtime.progress import Bar, track
from personalign.runtime.rundir import RunDir
from personalign.system import System, base_plan
from personalign.types import Cost, Request, Response, Sampling, Score

# By request: for every sample the answers of its steps.
Lines = dict[str, list[list[Response]]]


def answer(system: System, run: RunDir, requests: Sequence[Request], rank: int = 0, ranks: int = 1) -> None:
    """Answer what this rank has to answer in this round and `run` does not hold yet; the groups are dealt out in turn.

    A group that is not whole in `run` is made again as a whole, so that a resumed run equals an uninterrupted one.
    """
    by_id = {request.id: request for request in requests}
    if len(by_id) < len(requests):
        raise ValueError("two requests have the same id")
    system.recall(requests)
    decoder = system.decoder()
    groups = decoder.groups([Job(request.id, system.first(request)) for request in requests])[rank::ranks]
    whole = {row["request"] for row in run.responses() if row["selected"] and row["round"] == system.round}
    missing = [group for group in groups if not all(job.request in whole for job in group)]
    total, open_jobs = sum(map(len, groups)), sum(map(len, missing))
    with track("answering", total, "requests", done=total - open_jobs) as bar:
        for group in missing:
            _one_group(system, run, decoder, [(job, by_id[job.request]) for job in group], bar)


def offer(
    system: System, requests: Sequence[Request], sampling: Sampling, by: Literal["plan", "base"]
) -> tuple[list[Sequence[Response]], Cost]:
    """Several answers to each request for its user to compare, made by the system's plan or by the untouched base:
    those that the boundary lets through, and what all of them cost."""
    by_id = {request.id: request for request in requests}
    plans = [system.first(request) if by == "plan" else base_plan(request) for request in requests]
    jobs = [Job(request.id, replace(plan, sampling=sampling)) for request, plan in zip(requests, plans, strict=True)]
    decoder = system.decoder()
    lines: Lines = {}
    with track("asking", len(requests), "requests") as bar:
        for group in decoder.groups(jobs):
            lines |= _lines(system, decoder, [(job, by_id[job.request]) for job in group], refine=by == "plan")
            bar.advance(len(group))
    final = system.generation.final if by == "plan" else lambda line: line[-1]
    finals = [(request, [final(line) for line in lines[request.id]]) for request in requests]
    cost = sum((response.cost for of_request in lines.values() for response in chain(*of_request)), Cost())
    return [admitted for _, admitted in _admitted(system, finals)], cost


def _one_group(system: System, run: RunDir, decoder: Decoder, group: Sequence[tuple[Job, Request]], bar: Bar) -> None:
    """Decode a group, follow the workflow of its generation, and keep what came out."""
    lines = _lines(system, decoder, group)
    requests = [request for _, request in group]
    _choose(system, run, [(request, lines[request.id]) for request in requests])
    costs = [r.cost for of_request in lines.values() for r in chain(*of_request)]
    speed = sum(c.new_tokens for c in costs) / max(sum(c.seconds for c in costs), 1e-9)
    bar.advance(len(group), f"{speed:.0f} tokens/s")


def _lines(system: System, decoder: Decoder, group: Sequence[tuple[Job, Request]], *, refine: bool = True) -> Lines:
    """All samples of a group; to `refine` leads each to the end of its workflow."""
    requests = {request.id: request for _, request in group}
    watch = partial(_watched, system, requests) if refine and system.generation.watched else list
    lines: Lines = {id: [] for id in requests}
    for response in watch(decoder.answer([job for job, _ in group])):
        lines[response.request].append([response])
    while refine and (steps := _steps(system, list(requests.values()), lines)):
        made = {(r.request, r.sample): r for r in watch(decoder.generate([job for job, _ in steps]))}
        for job, line in steps:
            line.append(made[job.request, job.first])
    return lines


def _watched(system: System, requests: Mapping[str, Request], made: Sequence[Response]) -> list[Response]:
    """The responses with what the guide makes of each; it sees the recalled state alone."""
    assert system.guide is not None, "a composition that needs a guide has one"
    asked = [(requests[r.request], system.state(requests[r.request]), [r.text]) for r in made]
    scored = system.guide.score_all(asked)
    return [replace(response, score=score) for response, (score,) in zip(made, scored, strict=True)]


def _steps(system: System, requests: Sequence[Request], lines: Lines) -> list[tuple[Job, list[Response]]]:
    """The samples whose workflow wants a further step: the step's job, and the answers that it goes on from.

    Its answer is one more sample of the request, so that every answer has a number and a random stream of its own.
    """
    found = []
    for request in requests:
        numbers = count(sum(map(len, lines[request.id])))
        for line in lines[request.id]:
            plan = system.next(request, line)
            if plan is not None:
                found.append((Job(request.id, plan, next(numbers)), line))
    return found


def _choose(system: System, run: RunDir, answered: Sequence[tuple[Request, Sequence[Sequence[Response]]]]) -> None:
    """Give of each request's final answers the one that is admitted and selected, or refuse.

    Every answer is written down, the given one last: a request is whole as soon as that one has been written.
    """
    finals = [(request, [system.generation.final(line) for line in lines]) for request, lines in answered]
    asked = _admitted(system, finals)
    for (request, lines), (_, last), (_, admitted), scores in zip(
        answered, finals, asked, _scores(system, asked), strict=True
    ):
        made = list(chain(*lines))
        given = Response(request=request.id, text="", sample=len(made), stop="refused")
        if admitted:
            given = system.generation.select(admitted, scores)
        numbers = {response.sample for response in (*last, given)}
        for response in (*(r for r in made if r.sample != given.sample), given):
            marks = {"final": response.sample in numbers, "selected": response is given}
            run.append_response({**response.to_json(), "round": system.round, "user": request.user, **marks})


def _admitted(
    system: System, asked: Sequence[tuple[Request, Sequence[Response]]]
) -> list[tuple[Request, Sequence[Response]]]:
    """What the boundary lets through of each request's answers; it is shown their universal values if it needs them."""
    values: Sequence[list[Score] | None] = [None] * len(asked)
    if "reward.universal" in system.boundary.needs:
        values = system.values([(request, [r.text for r in made]) for request, made in asked]) or values
    admit = system.boundary.admit
    return [(request, admit(request, made, of_made)) for (request, made), of_made in zip(asked, values, strict=True)]


def _scores(system: System, asked: Sequence[tuple[Request, Sequence[Response]]]) -> list[list[Score] | None]:
    """What the guide thinks of the answers, where there is a choice; it sees the recalled state alone."""
    found: list[list[Score] | None] = [None] * len(asked)
    open_ones = [i for i, (_, admitted) in enumerate(asked) if len(admitted) > 1]
    if system.guide is None or not open_ones:
        return found
    wanted = [(asked[i][0], system.state(asked[i][0]), [r.text for r in asked[i][1]]) for i in open_ones]
    for i, scores in zip(open_ones, system.guide.score_all(wanted), strict=True):
        found[i] = scores
    return found
