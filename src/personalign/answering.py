"""From requests to answers: plans decoded in groups, each group kept as soon as it is whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Literal

from personalign.decoding.decoder import Decoder
from personalign.decoding.queue import Groups
from personalign.decoding.remote import RemoteDecoder
from personalign.decoding.rows import Job
from personalign.plans import Sampling
from personalign.runtime.progress import track
from personalign.runtime.rundir import RunDir
from personalign.system import System, base_plan
from personalign.types import Cost, Request, Response, Score

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
        for lines in _followed(system, decoder, missing, by_id, refine=True):
            _choose(system, run, [(by_id[name], of_request) for name, of_request in lines.items()])
            costs = [r.cost for of_request in lines.values() for r in chain(*of_request)]
            speed = sum(c.new_tokens for c in costs) / max(sum(c.seconds for c in costs), 1e-9)
            bar.advance(len(lines), f"{speed:.0f} tokens/s")


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
        for some in _followed(system, decoder, decoder.groups(jobs), by_id, refine=by == "plan"):
            lines |= some
            bar.advance(len(some))
    answers = system.generation.answers if by == "plan" else lambda line: line[-1:]
    made = [(request, [answers(line) for line in lines[request.id]]) for request in requests]
    cost = sum((response.cost for request in requests for response in chain(*lines[request.id])), Cost())
    return [admitted for _, admitted in _admitted(system, made)], cost


def _followed(
    system: System, decoder: Decoder | RemoteDecoder, groups: Groups, by_id: Mapping[str, Request], *, refine: bool
) -> Iterator[Lines]:
    """All samples of a group, when all are whole; to `refine` leads each to the end of its workflow.

    The samples of a group take their steps together.
    """
    queue = decoder.queue(groups)
    names_of = {job.request: tuple(job.request for job in group) for group in groups for job in group}
    lines: Lines = {job.request: [[] for _ in range(job.plan.sampling.n)] for group in groups for job in group}
    line_of = {(name, sample): line for name, some in lines.items() for sample, line in enumerate(some)}
    coming = {names: sum(len(lines[name]) for name in names) for names in names_of.values()}
    for response in queue:
        line_of.pop((response.request, response.sample)).append(response)
        names = names_of[response.request]
        coming[names] -= 1
        if coming[names]:
            continue
        some = [by_id[name] for name in names]
        if refine and system.generation.watched:
            _watched(system, some, lines)
        steps = _steps(system, some, lines) if refine else []
        line_of |= {(job.request, job.first): line for job, line in steps}
        coming[names] = len(steps)
        queue.add(decoder.groups([job for job, _ in steps]))
        if not steps:
            yield {name: lines.pop(name) for name in names}


def _watched(system: System, requests: Sequence[Request], lines: Lines) -> None:
    """Let the guide score the newest answer of every sample; it sees the recalled state alone."""
    assert system.guide is not None, "a composition that needs a guide has one"
    new = [(request, line) for request in requests for line in lines[request.id] if line[-1].score is None]
    asked = [(request, system.state(request), [line[-1].text]) for request, line in new]
    for (_, line), (score,) in zip(new, system.guide.score_all(asked), strict=True):
        line[-1] = replace(line[-1], score=score)


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
    """Give of each request's answers the one that is admitted and selected, or refuse.

    Every answer is written down, the given one last: a request is whole as soon as that one has been written.
    """
    answers = [(request, [system.generation.answers(line) for line in lines]) for request, lines in answered]
    asked = _admitted(system, answers)
    for (request, lines), (_, of_lines), (_, admitted), scores in zip(
        answered, answers, asked, _scores(system, asked), strict=True
    ):
        made = list(chain(*lines))
        given = Response(request=request.id, text="", sample=len(made), stop="refused")
        if admitted:
            given = system.generation.select(admitted, scores)
        numbers = {response.sample for response in (*(line[0] for line in of_lines), given)}
        for response in (*(r for r in made if r.sample != given.sample), given):
            marks = {"final": response.sample in numbers, "selected": response is given}
            run.append_response({**response.to_json(), "round": system.round, "user": request.user, **marks})


def _admitted(
    system: System, asked: Sequence[tuple[Request, Sequence[Sequence[Response]]]]
) -> list[tuple[Request, Sequence[Response]]]:
    """Of each of a request's samples the first answer that the boundary lets through, where it lets one through.

    `asked` holds every sample's answers, the best first. Those behind the best are looked at where it does not pass.
    """
    passed = _passed(system, [(request, [line[0] for line in lines]) for request, lines in asked])
    others = [
        (request, [r for line in lines if line[0].sample not in of_request for r in line[1:]])
        for (request, lines), of_request in zip(asked, passed, strict=True)
    ]
    for of_request, more in zip(passed, _passed(system, others), strict=True):
        of_request |= more
    found: list[tuple[Request, Sequence[Response]]] = []
    for (request, lines), of_request in zip(asked, passed, strict=True):
        ones = [[r for r in line if r.sample in of_request][:1] for line in lines]
        found.append((request, list(chain(*ones))))
    return found


def _passed(system: System, asked: Sequence[tuple[Request, Sequence[Response]]]) -> list[set[int]]:
    """The numbers of those that the boundary lets through; it is shown their universal values if it needs them."""
    found: list[set[int]] = [set() for _ in asked]
    some = [i for i, (_, made) in enumerate(asked) if made]
    values: Sequence[list[Score] | None] = [None] * len(some)
    if some and "reward.universal" in system.boundary.needs:
        values = system.values([(asked[i][0], [r.text for r in asked[i][1]]) for i in some]) or values
    for i, of_made in zip(some, values, strict=True):
        found[i] = {response.sample for response in system.boundary.admit(*asked[i], of_made)}
    return found


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
