"""The columns of every table: rewards, alignment accuracy, diversity, fluency and cost, by user."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from personalign.contracts import Bound, Evaluation, NaturalInt, NonNegativeFloat, OpenFraction, PositiveInt, Seed
from personalign.evaluation import metrics, pareto, references, text
from personalign.evaluation.length import LengthControl
from personalign.evaluation.statistics import Better, Bootstrap, Comparison, Estimate, compare
from personalign.results import Calibration, Figure, Judged, JudgedPair

BETTER: dict[str, Better] = {
    "reward": "higher",
    "reward_worst_tenth": "higher",
    "reward_at_length": "higher",
    "alignment_accuracy": "higher",
    "choice_accuracy": "higher",
    "choice_accuracy_raw": "higher",
    "label_accuracy": "higher",
    "label_f1": "higher",
    "label_mae": "lower",
    "label_rmse": "lower",
    "rouge1": "higher",
    "rougeL": "higher",
    "bleu": "higher",
    "diversity": "higher",
    "distinct": "higher",
    "repetition": "lower",
    "perplexity": "lower",
    "tokens_per_second": "higher",
    "forward_tokens_per_token": "lower",
    "eos_rate": "higher",
    "violation_rate": "lower",
    "personalization_tax": "lower",
}


class Standard(Evaluation):
    """Figures of one run. Each is a mean over users of the user's mean, with a bootstrap interval by user.

    reward              the truth's total; reward_worst_tenth: of the tenth of users, at least one, who fare worst
    reward.<dimension>  p_d r_d, what a dimension adds to that total, over the users who care for it (p_d not 0);
                        where no stance is known the bare rating r_d, of which nobody knows which side is better
    reward_at_length    the reward at the length of the base's answers (`LengthControl`)
    hypervolume         of the Pareto front of the users' mean ratings on the dimensions of `front` (`pareto.front`)
    alignment_accuracy  held-out pairs that the system's margin puts right, a tie one half
    choice_accuracy     requests with choices where the plan finds a right one likeliest by the token; _raw: as a whole
    label_accuracy, label_f1, label_mae, label_rmse
                        of the label that an answer names, where the request tells them: macro F1 over all answers,
                        the error of numbers, its mean and the root of its mean square; an answer that names none or
                        several is wrong, by as much as can be
    rouge1, rougeL      F-measure against the request's references, where they are texts; bleu: over all answers
    diversity           unique n-grams of an answer, n = 2..4 (PAD's); distinct: of a user's answers together
    repetition          share of 4-grams said before; words: length; eos_rate, refusal_rate: how answers end
    perplexity          of the answers under the base on the plain prompt; geometric mean over users
    tokens_per_second, forward_tokens_per_token: tokens of the given answers against all that was computed for them,
                        other samples and steps included; summed within a user

    violation_rate      answers with a universal value below its floor; a refusal is none
    personalization_tax the truth's total that was given up: that of the best of all samples less that of the answer,
                        and for a refusal less that of the worst sample

    The last two are measured where all floors' values are scored. The tax of a single sample is 0; of more it holds
    what the guide errs too: the boundary's own price is the difference from the same row without it.

    A refusal has no reward, since nobody can say what it is worth to the user beside an answer: every figure of rewards
    is of the answered requests, to be read beside refusal_rate. In the tax it is never cheaper than an answer that was
    there to be given.

    A figure whose inputs are missing is left out. The empty answer counts everywhere except where it is
    undefined: diversity, repetition, perplexity and the two costs.
    """

    needs = ()
    provides = ()
    paper = "arXiv 2410.04070 (diversity); arXiv 2304.11406 (labels, ROUGE); arXiv 2503.17003, section 5"
    node = "evaluation"

    def __init__(
        self,
        *,
        resamples: PositiveInt,
        level: OpenFraction,
        few_users: NaturalInt,
        bootstrap_seed: Seed,
        length_shrinkage: NonNegativeFloat,
        tie: NonNegativeFloat,
        floors: dict[str, Bound],
        front: list[str],
        front_corner: float,
    ) -> None:
        self.how = Bootstrap(resamples=resamples, level=level, few_users=few_users, seed=bootstrap_seed)
        self.length_shrinkage = length_shrinkage
        self.tie = tie
        self.floors = floors
        self.front = front
        self.front_corner = front_corner

    def measure(
        self, answers: Sequence[Judged], pairs: Sequence[JudgedPair], calibration: Sequence[Calibration]
    ) -> dict[str, Figure]:
        """The figures of all answers of a run, in one process. Raises ValueError for NaN and infinity."""
        _check(answers, pairs, calibration)
        found: list[tuple[str, metrics.Items]] = [*self._rewards(answers, calibration), *self._accuracy(pairs)]
        found += [*references.figures(answers, self.how), *self._texts(answers), *self._ends_and_costs(answers)]
        found += self._boundary(answers)
        known: Better = "higher" if any(a.stance for a in answers) else "none"
        sides = {name: BETTER.get(name, known if name.startswith("reward.") else "none") for name, _ in found}
        figures = {name: metric.compute().figure(sides[name]) for name, metric in found}
        figures["hypervolume"] = self._front(answers).figure("higher")
        return {name: figure for name, figure in figures.items() if figure.n}

    def _front(self, answers: Sequence[Judged]) -> Estimate:
        """Of the answers that are rated on every dimension of the front."""
        rated = [(a.request.user, a.truth.dimensions) for a in answers if a.truth is not None]
        rated = [(user, ratings) for user, ratings in rated if self.front and ratings.keys() >= set(self.front)]
        table = np.array([[ratings[name] for name in self.front] for _, ratings in rated])
        return pareto.front([user for user, _ in rated], table, self.front_corner, self.how)

    def compare(self, answers: Sequence[Judged], baseline: Sequence[Judged]) -> Comparison | None:
        """Win, tie and lose per (user, request) by true reward, where both answer; None where no request is shared."""
        return compare(_by_request(answers), _by_request(baseline), tie=self.tie, how=self.how)

    def average(self, values: Sequence[tuple[str, float]], better: Literal["higher", "lower"]) -> Figure:
        """`UserMean` of what another measured."""
        return self._mean(values).compute().figure(better)

    def _mean(self, rows: Sequence[tuple[str, float]]) -> metrics.UserMean:
        # One process measures all answers, so other ranks must not be waited for.
        metric = metrics.UserMean(self.how, sync_on_compute=False)
        metric.update([user for user, _ in rows], [value for _, value in rows])
        return metric

    def _rewards(
        self, answers: Sequence[Judged], calibration: Sequence[Calibration]
    ) -> Iterator[tuple[str, metrics.ByUser]]:
        scored = [(a.request.user, a.response.text, a.truth) for a in answers if a.truth is not None]
        users, totals = [user for user, _, _ in scored], [truth.total for _, _, truth in scored]
        for name, kind in (("reward", metrics.UserMean), ("reward_worst_tenth", metrics.WorstTenth)):
            metric = kind(self.how, sync_on_compute=False)
            metric.update(users, totals)
            yield name, metric
        if control := LengthControl.fit(calibration, self.length_shrinkage):
            rows = [(u, control.adjusted(u, len(text.words(said)), truth.total)) for u, said, truth in scored]
            yield "reward_at_length", self._mean(rows)
        for name, rows in _by_dimension(answers).items():
            yield f"reward.{name}", self._mean(rows)

    def _accuracy(self, pairs: Sequence[JudgedPair]) -> Iterator[tuple[str, metrics.ByUser]]:
        accuracy = metrics.AlignmentAccuracy(self.how, sync_on_compute=False)
        accuracy.update([p.pair.request.user for p in pairs], [p.margin for p in pairs])
        yield "alignment_accuracy", accuracy

    def _texts(self, answers: Sequence[Judged]) -> Iterator[tuple[str, metrics.ByUser]]:
        users, texts = [a.request.user for a in answers], [a.response.text for a in answers]
        for name, kind in (("diversity", metrics.Diversity), ("repetition", metrics.Repetition)):
            metric = kind(self.how, sync_on_compute=False)
            metric.update(users, texts)
            yield name, metric
        said: dict[str, list[str]] = {}
        for user, one in zip(users, texts, strict=True):
            said.setdefault(user, []).append(one)
        shares = [(user, text.distinct(all_of_them)) for user, all_of_them in said.items()]
        yield "distinct", self._mean([row for row in shares if not math.isnan(row[1])])
        yield "words", self._mean([(u, float(len(text.words(t)))) for u, t in zip(users, texts, strict=True)])

    def _ends_and_costs(self, answers: Sequence[Judged]) -> Iterator[tuple[str, metrics.ByUser]]:
        # Answers of a model that is elsewhere come without tokens, in a time that is not the model's own.
        read = [(a, a.base_nll) for a in answers if a.base_nll is not None]
        users, costs = [a.request.user for a, _ in read], [a.response.cost for a, _ in read]
        perplexity = metrics.Perplexity(self.how, sync_on_compute=False)
        tokens = [a.base_tokens for a, _ in read]
        perplexity.update(users, [nll for _, nll in read], tokens)
        speed = metrics.UserRatio(self.how, sync_on_compute=False)
        speed.update(users, tokens, [c.seconds for c in costs])
        work = metrics.UserRatio(self.how, sync_on_compute=False)
        work.update(users, [c.forward_tokens for c in costs], tokens)
        yield from (("perplexity", perplexity), ("tokens_per_second", speed))
        yield "forward_tokens_per_token", work
        for name, stop in (("eos_rate", "eos"), ("refusal_rate", "refused")):
            yield name, self._mean([(a.request.user, float(a.response.stop == stop)) for a in answers])

    def _boundary(self, answers: Sequence[Judged]) -> Iterator[tuple[str, metrics.ByUser]]:
        values = [(a, a.universal) for a in answers if a.universal is not None and self.floors]
        scored = [(a, value) for a, value in values if value.dimensions.keys() >= self.floors.keys()]
        broken = [(a.request.user, not a.response.refused and not v.meets(self.floors)) for a, v in scored]
        yield "violation_rate", self._mean([(user, float(one)) for user, one in broken])
        given = [(a, a.worst if a.truth is None else a.truth.total) for a, _ in scored]
        lost = [(a.request.user, 0.0 if a.best is None else a.best - got) for a, got in given if got is not None]
        yield "personalization_tax", self._mean(lost)


def _check(answers: Sequence[Judged], pairs: Sequence[JudgedPair], calibration: Sequence[Calibration]) -> None:
    for a in answers:
        where = f"request {a.request.id!r} of user {a.request.user!r}, sample {a.response.sample}"
        _finite(f"the base's log-probability of the answer to {where}", a.base_nll or 0.0)
        _finite(f"the time of the answer to {where}", a.response.cost.seconds)
        for choice, score in zip(a.request.choices, a.choices, strict=False):
            _finite(f"the log-probability of the choice {choice!r} of {where}", score.logprob)
        for name, value in {"total": a.truth.total, **a.truth.dimensions}.items() if a.truth else ():
            _finite(f"the true reward ({name}) of the answer to {where}", value)
        for name, value in a.universal.dimensions.items() if a.universal else ():
            _finite(f"the universal value {name} of the answer to {where}", value)
    for p in pairs:
        _finite(f"the margin of pair {p.pair.id!r} of user {p.pair.request.user!r}", p.margin)
    for c in calibration:
        _finite(f"the reward of a calibration answer of user {c.user!r}", c.reward)


def _by_dimension(answers: Sequence[Judged]) -> dict[str, list[tuple[str, float]]]:
    """(user, p_d r_d) by dimension for users who care for it, or (user, r_d) when no stance is known."""
    rated: dict[str, list[tuple[str, float]]] = {}
    told = any(a.stance for a in answers)
    for a in answers:
        stance = a.stance.as_dict() if a.stance else {}
        for name, rating in a.truth.dimensions.items() if a.truth else ():
            weight = stance.get(name, 0.0) if told else 1.0
            if weight:
                rated.setdefault(name, []).append((a.request.user, weight * rating))
    return rated


def _finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{what} is {value}")


def _by_request(answers: Sequence[Judged]) -> dict[tuple[str, ...], float]:
    """The true reward by (user, request), the mean over samples and rounds."""
    rewards: dict[tuple[str, ...], list[float]] = {}
    for a in answers:
        if a.truth is not None:
            rewards.setdefault((a.request.user, a.request.id), []).append(a.truth.total)
    return {key: sum(values) / len(values) for key, values in rewards.items()}
