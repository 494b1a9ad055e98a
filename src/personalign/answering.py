"""From requests to answers: plans decoded group by group, each group kept as soon as it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.runtime.progress import Bar, track
from personalign.runtime.rundir import RunDir
from personalign.system import System
from personalign.types import Request, Response


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
    for _, request in group:
        _keep(system, run, request, answers[request.id])
    bar.advance(len(group), f"{tokens / max(seconds, 1e-9):.0f} tokens/s")


def _next(system: System, request: Request, made: Sequence[Response]) -> Job | None:
    """A further plan where the workflow wants one; its answers count as further samples of the request."""
    plan = system.generation.next(request, system.state(request), made)
    if plan is None:
        return None
    return Job(request.id, replace(system.boundary.shape(plan), sampling=system.sampling))


def _keep(system: System, run: RunDir, request: Request, made: Sequence[Response]) -> None:
    """Choose the answer that is given, or refuse, and write every answer down."""
    numbered = [replace(response, sample=i) for i, response in enumerate(made)]
    admitted = system.boundary.admit(request, numbered)
    if admitted:
        given = system.generation.select(admitted, _scores(system, request, admitted))
    else:
        given = replace(numbered[0], text="", stop="refused")
        numbered[0] = given
    for response in numbered:
        run.append_response({**response.to_json(), "user": request.user, "selected": response.sample == given.sample})


def _scores(system: System, request: Request, admitted: Sequence[Response]) -> Any:
    """What the guide thinks of the answers, where there is a choice; it sees the recalled state alone."""
    if system.guide is None or len(admitted) == 1:
        return None
    return system.guide.score(request, system.state(request), [r.text for r in admitted])
