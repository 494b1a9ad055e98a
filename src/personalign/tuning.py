"""The strength of generation, chosen on the validation split before any held-out request is looked at.

The answers at every strength that is tried are kept in the run's folder, in `tuning/<strength>`, and what they came to
is one line of `tuning.jsonl`, written whole: a run that was killed goes on where it was, and chooses the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from personalign.answering import answer
from personalign.contracts import UserError
from personalign.decoding.rows import Job
from personalign.judging import base_nll, given, true_scores
from personalign.results import Figure
from personalign.runtime.files import append_line, make_folder
from personalign.runtime.ranks import wait_for_all
from personalign.runtime.rundir import RunDir
from personalign.system import System, base_plan
from personalign.types import Cost, Request, Response

Answered = Sequence[tuple[Request, Response]]
# What a strength came to: its reward (a `Figure`), perplexity and cost; strength null is the untouched base.
Line = dict[str, Any]


class Tuning:
    """Answers the validation requests at every strength of `tune.strengths`, and has the system answer at the best.

    The best has the largest mean reward over users, of equals the first: the user's true reward, or what the guide
    makes of the answer. A refusal has no reward: where a boundary refuses requests, the strengths at which it refuses
    the fewest are compared, so that none is chosen for answering the easy ones alone. A guide that reads the system's
    plan reads that of the composition as it stands, so that all strengths are measured alike. With `tune.perplexity`
    those are left out whose answers are less fluent than that.
    """

    def __init__(self, system: System, run: RunDir) -> None:
        """Raises UserError where there are no validation requests."""
        self.system, self.run = system, run
        self.settings = system.cfg.tune
        self.requests = system.requests("validation") if self.settings.strengths else []
        if self.settings.strengths and not self.requests:
            raise UserError(
                f"tune.strengths needs validation requests, and data={system.cfg.choices.data} has none: choose a "
                f"strength yourself, as {self.key}, and set tune.strengths=null"
            )

    @property
    def key(self) -> str:
        return f"generation.{self.system.generation.strength}"

    def choose(self, rank: int, ranks: int) -> dict[str, Any]:
        """What the record says: the strength that was chosen, and what each came to. All ranks answer, rank 0 measures.

        Raises UserError where nobody knows the true reward, or no strength is fluent enough.
        """
        if rank == 0 and self.settings.perplexity is not None and not self._lines(None):
            self._write(None, self._by_base())
        for strength in self.settings.strengths:
            if not self._lines(strength):
                answered = self._answered(strength, rank, ranks)
                if rank == 0:
                    self._write(strength, answered)
            wait_for_all(ranks)
        told = self._told()
        self.system.answer_at(told["chosen"])
        return told

    def _answered(self, strength: float, rank: int, ranks: int) -> Answered:
        """What is given to each request at a strength, of those that are kept and those that are still missing."""
        place = RunDir(self.run.path / "tuning", repr(strength), rank)
        make_folder(place.path)
        self.system.answer_at(strength)
        answer(self.system, place, self.requests, rank, ranks)
        self.system.answer_at(None)
        wait_for_all(ranks)
        return list(zip(self.requests, given(place, self.requests, 0), strict=True)) if rank == 0 else []

    def _by_base(self) -> Answered:
        """The untouched base's answers, which say what perplexity is usual here."""
        sampling = replace(self.system.sampling, n=1)
        jobs = [Job(request.id, replace(base_plan(request), sampling=sampling)) for request in self.requests]
        return list(zip(self.requests, self.system.decoder().generate(jobs), strict=True))

    def _write(self, strength: float | None, answered: Answered) -> None:
        cost = sum((response.cost for _, response in answered), Cost())
        line = {
            "strength": strength,
            "reward": asdict(self._reward(answered)),
            "perplexity": self._perplexity(answered),
            "cost": {"forward_tokens": cost.forward_tokens, "new_tokens": cost.new_tokens},
            **({"refused": refused} if (refused := sum(r.refused for _, r in answered)) else {}),
        }
        append_line(self.run.path / self.run.TUNING, json.dumps(line), fsync=True)

    def _reward(self, answered: Answered) -> Figure:
        """The mean over users of their mean reward, as `tune.by` says."""
        asked = [(request, [response.text]) for request, response in answered if not response.refused]
        if not asked:
            raise UserError(
                f"the boundary refuses every validation request at a strength of {self.key}: lower its floors, or take "
                "the strength out of tune.strengths"
            )
        if self.settings.by == "truth":
            scores = true_scores(self.system, asked)
        else:
            assert self.system.guide is not None, "a composition that is tuned by its guide has one"
            scores = self.system.guide.score_all([(one, self.system.state(one), texts) for one, texts in asked])
        values = [(request.user, mine[0].total) for (request, _), mine in zip(asked, scores, strict=True) if mine]
        if not values:
            raise UserError(
                f"tune.by=truth: nobody knows the true reward of the validation requests of "
                f"data={self.system.cfg.choices.data}; use tune.by=guide, or set tune.strengths=null"
            )
        return self.system.evaluation.average(values, "higher")

    def _perplexity(self, answered: Answered) -> float | None:
        """Under the untouched base: the geometric mean over users of each one's; None where no answer has a token, and
        where the base is elsewhere."""
        sums: dict[str, tuple[float, int]] = {}
        for (request, response), nll in zip(answered, base_nll(self.system, answered), strict=True):
            if nll is None:
                return None
            above, below = sums.get(request.user, (0.0, 0))
            sums[request.user] = above + nll, below + len(response.tokens)
        each = [above / below for above, below in sums.values() if below]
        return math.exp(sum(each) / len(each)) if each else None

    def _lines(self, strength: float | None) -> list[Line]:
        return [line for line in self.run.tuning() if line["strength"] == strength]

    def _told(self) -> dict[str, Any]:
        tried = [line for strength in self.settings.strengths for line in self._lines(strength)]
        told = {"key": self.key, "by": self.settings.by, "perplexity": self.settings.perplexity}
        told |= {"tried": tried, "base": next(iter(self._lines(None)), None)}
        fluent = [line for line in tried if self._is_fluent(line["perplexity"], told["base"])]
        if not fluent:
            raise UserError(
                f"no strength of {self.key} keeps the perplexity of answers within tune.perplexity="
                f"{self.settings.perplexity:g} times the base's {told['base']['perplexity']:.3g}: the least is "
                f"{min(line['perplexity'] for line in tried):.3g}; try weaker ones, or allow more"
            )
        best = max(fluent, key=lambda line: (-int(line.get("refused", 0)), float(line["reward"]["value"])))
        return {"chosen": best["strength"], **told}

    def _is_fluent(self, perplexity: float | None, base: Line | None) -> bool:
        if base is None or perplexity is None or base["perplexity"] is None:
            return True
        return bool(perplexity <= self.settings.perplexity * base["perplexity"])
