"""Answers that choose: which label an answer names, which choice is likeliest, and macro F1. NumPy alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from personalign.evaluation.statistics import Floats
from personalign.results import ChoiceScore
from personalign.types import Request


def named(answer: str, choices: Sequence[str]) -> str | None:
    """The one choice that an answer names as words of their own, whatever their case; None for none or several.

    Of choices that overlap ("dark comedy", "comedy") the longest counts.
    """
    by_fold = {choice.strip().casefold(): choice for choice in choices}
    pattern = "|".join(re.escape(choice) for choice in sorted(by_fold, key=len, reverse=True))
    found = set(_words(pattern, answer))
    return by_fold[found.pop()] if len(found) == 1 else None


def offered(request: Request) -> bool:
    """Whether the request itself tells its choices, so that an answer can name one."""
    asked = " ".join(message.content for message in request.messages)
    return bool(request.choices) and all(_words(re.escape(c.strip().casefold()), asked) for c in request.choices)


def _words(pattern: str, text: str) -> list[str]:
    """Where the case-folded text has the pattern as whole words."""
    return re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text.casefold())


def error(label: str | None, request: Request) -> float:
    """|label - reference|, for the nearest reference; the largest possible where no label was named, as in LaMP's
    own evaluation (arXiv 2304.11406). NaN where the choices are no numbers."""
    numbers = [_number(choice) for choice in request.choices]
    if not all(map(math.isfinite, numbers)):
        return math.nan
    right = [float(reference) for reference in request.references]
    if label is not None:
        return min(abs(float(label) - one) for one in right)
    return max(min(abs(number - one) for one in right) for number in numbers)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def f1_counts(label: str | None, right: Sequence[str], labels: Sequence[str]) -> list[float]:
    """For each of all `labels`: 1 for a true positive, a false positive, a false negative; (3 labels,), flat.

    Of several right labels the one that was named counts, else the first.
    """
    wanted = label if label in right else right[0]
    return [
        float(hit) for one in labels for hit in (one == label == wanted, one == label != wanted, one == wanted != label)
    ]


def macro_f1(sums: Floats) -> Floats:
    """The mean over labels of 2 tp / (2 tp + fp + fn), from sums (..., 3 labels); labels that neither an answer nor
    a reference has are left out."""
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    above = 2.0 * counts[..., 0]
    below = above + counts[..., 1] + counts[..., 2]
    shares = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    mean: Floats = shares.sum(-1) / np.maximum((below > 0).sum(-1), 1)
    return mean


def likeliest(request: Request, scores: Sequence[ChoiceScore], *, by_token: bool) -> float:
    """1 where the likeliest choice is right, 0 where it is not, the share of right ones among several that tie.

    Likeliest by the log-probability of the whole choice, or by its mean over the choice's tokens (`by_token`).
    """
    values = [score.logprob / max(score.tokens, 1) if by_token else score.logprob for score in scores]
    best = max(values)
    tied = [choice for choice, value in zip(request.choices, values, strict=True) if value == best]
    return sum(choice in request.references for choice in tied) / len(tied)
