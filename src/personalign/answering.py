"""From requests to answers: plans decoded group by group, each group kept as soon as it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.runtime.progress import Bar, track
from personalign.runtime.rundir import RunDir
from personalign.system import System
from personalign.types import Request, Response, Score


def answer(system: System, run: RunDir, requests: Sequence[Request], rank: int = 0, ranks: int = 1) -> None:
    """Answer what this rank has to answer and `run` does not hold yet; the groups are dealt out in turn.

    A group that is not whole in `run` is made again as a whole, so that a resumed run equals an uninterrupted one.
    """
    by_id = {request.id: request for request in requests}
    if len(by_id) < len(requests):
        raise ValueError("two requests have the same id")
    decoder = system.decoder()
    groups = decoder.groups([Job(request.id, system.plan(request)) for request in requests])[rank::ranks]
    kept = {(row["request"], row["sample"]) for row in run.responses()}
    missing = [g for g in groups if not all((j.request, s) in kept for j in g for s in range(j.plan.sampling.n))]
    total, open_jobs = sum(map(len, groups)), sum(map(len, missing))
    with track("answering", total, "requests", done=total - open_jobs) as bar:
        for group in missing:
            _one_group(system, run, decoder, [(job, by_id[job.request]) for job in group], bar)


def _one_group(system: System, run: RunDir, decoder: Decoder, group: Sequence[tuple[Job, Request]], bar: Bar) -> None:
    """Decode a group, follow the workflow of its generation, and keep what came out."""
    answers: dict[str, list[Response]] = {job.request: [] for job, _ in group}
    open_jobs = [job for job, _ in group]
    while open_jobs:
        for response in decoder.answer(open_jobs):
            answers[response.request].append(response)
        asked = [(request, answers[request.id]) for _, request in group]
        open_jobs = [job for request, made in asked if (job := _next(system, request, made)) is not None]
    tokens = sum(r.cost.new_tokens for made in answers.values() for r in made)
    seconds = sum(r.cost.seconds for made in answers.values() for r in made)
    _choose(system, run, [(request, answers[request.id]) for _, request in group])
    bar.advance(len(group), f"{tokens / max(seconds, 1e-9):.0f} tokens/s")


def _next(system: System, request: Request, made: Sequence[Response]) -> Job | None:
    """A further plan where the workflow wants one; its answers count as further samples of the request."""
    plan = system.generation.next(request, system.state(request), made)
    if plan is None:
        return None
    return Job(request.id, replace(system.boundary.shape(plan), sampling=system.sampling))


def _choose(system: System, run: RunDir, answered: Sequence[tuple[Request, Sequence[Response]]]) -> None:
    """Give of each request's answers the one that is admitted and selected, or refuse, and write all down."""
    made = [[replace(response, sample=i) for i, response in enumerate(responses)] for _, responses in answered]
    asked = _admitted(system, [(request, one) for (request, _), one in zip(answered, made, strict=True)])
    for one, (request, admitted), scores in zip(made, asked, _scores(system, asked), strict=True):
        if admitted:
            given = system.generation.select(admitted, scores)
        else:
            given = Response(request=request.id, text="", sample=len(one), stop="refused")
            one.append(given)
        for response in one:
            row = {**response.to_json(), "user": request.user, "selected": response.sample == given.sample}
            run.append_response(row)


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
