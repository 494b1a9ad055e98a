"""A language model behind an endpoint as judge of what a user would think of an answer."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, ClassVar, Literal

from personalign.contracts import (
    NaturalInt,
    NonNegativeFloat,
    OpenUrl,
    PositiveFloat,
    PositiveInt,
    Reward,
    StanceValue,
    UserError,
)
from personalign.reward.verdicts import Verdicts
from personalign.runtime.endpoint import Endpoint
from personalign.runtime.templates import checked, fill
from personalign.types import Message, Plan, Request, Score, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy

Asked = Sequence[tuple[Request, UserState, Sequence[str]]]
# Bracketed words that some chat templates take as their own tokens; those in <> are escaped anyway.
BRACKETED = re.compile(r"\[(?=/?[A-Z_]+\])")
# What stands between "Verdict" or the start of a reply and the verdict, and after it.
MARKS = r"[\s:=*_`\"'()\[\]]*"
TRIAL = Request(id="trial", user="", messages=(Message("user", "Hello!"),))


class Judge(Reward):
    """The judge's verdict on one answer for one user, as a number in [-1, 1] that `scale` gives to each verdict.

    The judge is told what the state knows of the user: the profile and, where there is one (under `truth` only that),
    the stance. Texts are escaped, so that none can end its place in the prompt or begin another; that a text talks
    the judge round with plain words cannot be excluded. Survey (arXiv 2503.17003), section 4.2, rewarding by prompt;
    the judge as such: arXiv 2306.05685, section 3.1. Raises UserError as `Endpoint.ask` does; `bind` puts a trial
    question, so that what is wrong with the endpoint shows before answers are made.
    """

    needs: ClassVar[tuple[str, ...]] = ("state.profile",)
    provides: ClassVar[tuple[str, ...]] = ()
    paper = "arXiv 2503.17003, section 4.2; arXiv 2306.05685, section 3.1"
    node = "personalized rewarding / prompting"
    answers: ClassVar[tuple[str, ...]] = ("answer",)

    def __init__(
        self,
        *,
        url: OpenUrl | None,
        url_variable: str,
        key_variable: str,
        model: str,
        temperature: NonNegativeFloat | None,
        max_tokens: PositiveInt,
        limit_name: Literal["max_tokens", "max_completion_tokens"],
        timeout: PositiveFloat,
        retries: NaturalInt,
        backoff: NonNegativeFloat,
        concurrency: PositiveInt,
        cache: str,
        dimension: str,
        scale: dict[str, StanceValue],
        prompt: str,
        reminder: str,
        stance: str,
        unknown: str,
    ) -> None:
        if len(scale) < 2 or not all(label.strip() for label in scale):
            raise UserError("judge: scale needs two verdicts or more, each with a name")
        endpoint = Endpoint(
            who="judge",
            url=url,
            url_variable=url_variable,
            key_variable=key_variable,
            model=model,
            limit_name=limit_name,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            concurrency=concurrency,
            cache=cache,
        )
        verdicts = ", ".join(scale)
        self._prompt = checked(prompt, ("user", "request", *self.answers, "verdicts"))
        self._read = reader(scale)
        once_more = fill(checked(reminder, ("verdicts",)), verdicts=verdicts)
        self._asked = Verdicts(endpoint, max_tokens, temperature, once_more, self._read)
        self._stance = checked(stance, ("dimension", "value"))
        self._verdicts, self._unknown, self._dimension = verdicts, unknown, dimension

    def bind(self, policy: Policy | None, plan: Callable[[Request], Plan]) -> None:
        self._ask([self._question(TRIAL, UserState(), *(["Hello."] * len(self.answers)))])

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        return self.score_all([(request, state, responses)])[0]

    def score_all(self, asked: Asked) -> list[list[Score]]:
        """All answers at once; a question that recurs is put once."""
        values = iter(self._ask([self._question(r, state, text) for r, state, texts in asked for text in texts]))
        return [[self._score(next(values)) for _ in texts] for _, _, texts in asked]

    def _score(self, value: float) -> Score:
        return Score(value, {self._dimension: value})

    def _ask(self, prompts: Sequence[str]) -> list[float]:
        return self._asked.ask(prompts)

    def _question(self, request: Request, state: UserState, *texts: str) -> str:
        shown = {name: escaped(text) for name, text in zip(self.answers, texts, strict=True)}
        said = conversation(request)
        return fill(self._prompt, user=self._person(state), request=said, verdicts=self._verdicts, **shown)

    def _person(self, state: UserState) -> str:
        """What is known of the user, a line each."""
        lines = [escaped(state.profile)] if state.profile and state.profile.strip() else []
        stance = state.stance.as_dict() if state.stance else {}
        lines += [fill(self._stance, dimension=escaped(d), value=f"{v:+.2f}") for d, v in stance.items()]
        return "\n".join(lines) or self._unknown


class PairwiseJudge(Judge):
    """How often the judge prefers an answer to the others of its request, in [-1, 1]: the mean over the others.

    Every two answers are put in both orders, and the two verdicts are averaged, so that a preference for a place
    cancels and disagreement is a tie (arXiv 2306.05685, section 3.4); n answers take n (n - 1) questions. On
    held-out pairs alignment accuracy is then the judge's win rate of the chosen answer. Raises UserError for a lone
    answer, since nothing can be said of it: as reward@truth, which is shown one answer at a time, `Judge` serves.
    """

    needs = ("state.profile",)
    provides = ()
    paper = "arXiv 2503.17003, section 4.2; arXiv 2306.05685, section 3.4"
    node = "personalized rewarding / prompting"
    answers = ("first", "second")

    def score_all(self, asked: Asked) -> list[list[Score]]:
        """All pairs at once; a question that recurs is put once, and equal texts tie without one."""
        for request, _, texts in asked:
            if len(texts) == 1:
                raise UserError(
                    f"request {request.id}: reward judge_pairwise compares answers, and there is one: use reward judge"
                )
        prompts = [self._question(r, state, a, b) for r, state, texts in asked for a, b in _orders(texts)]
        values = dict(zip(prompts, self._ask(prompts), strict=True))
        return [[self._score(self._mean(values, r, s, i, texts)) for i in range(len(texts))] for r, s, texts in asked]

    def _mean(
        self, values: dict[str, float], request: Request, state: UserState, i: int, texts: Sequence[str]
    ) -> float:
        mine, others = texts[i], [*texts[:i], *texts[i + 1 :]]
        total = 0.0
        for other in others:
            if other != mine:
                first, second = (self._question(request, state, *order) for order in ((mine, other), (other, mine)))
                total += (values[first] - values[second]) / 2
        return total / len(others)


def _orders(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    return permutations(dict.fromkeys(texts), 2)


def escaped(text: str) -> str:
    """A text that holds no tag and no chat template's token."""
    return BRACKETED.sub("&#91;", html.escape(text, quote=False))


def conversation(request: Request) -> str:
    """The request's text; of several turns each in a tag of its role."""
    if len(request.messages) == 1:
        return escaped(request.messages[0].content)
    return "\n".join(f"<{m.role}>{escaped(m.content)}</{m.role}>" for m in request.messages)


def reader(scale: dict[str, float]) -> Callable[[str], float | None]:
    """Reads a reply: the last "Verdict: NAME" in it, or a reply that is a name alone; None where there is neither."""
    values = {label.strip().lower(): float(value) for label, value in scale.items()}
    labels = "|".join(re.escape(label) for label in sorted(values, key=len, reverse=True))
    named = re.compile(rf"\bverdict{MARKS}({labels})(?!\w|[.,]\d)", re.IGNORECASE)
    alone = re.compile(rf"{MARKS}({labels})\.?{MARKS}", re.IGNORECASE)

    def read(reply: str) -> float | None:
        text = reply.rpartition("</think>")[2]
        found = [match[1] for match in named.finditer(text)]
        if not found and (only := alone.fullmatch(text)):
            found = [only[1]]
        return values[found[-1].lower()] if found else None

    return read
