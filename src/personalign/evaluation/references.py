"""Answers against the references of their requests: BLEU and ROUGE of texts, accuracy of labels and of choices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from torchmetrics.functional.text import rouge_score
from torchmetrics.text import SacreBLEUScore

from personalign.evaluation import labels, metrics
from personalign.evaluation.statistics import Bootstrap, Floats
from personalign.results import Judged

ORDERS = 4
ROUGE = ("rouge1", "rougeL")
# What ROUGE calls a word: letters and digits of English.
ROUGE_WORD = re.compile(r"[a-z0-9]")
Named = Iterator[tuple[str, metrics.Items]]


def figures(answers: Sequence[Judged], how: Bootstrap) -> Named:
    """Metrics by name; those without an item give n = 0. Texts where the reference is one of no choices; labels where
    the request tells its choices; choices where they were scored."""
    known = [a for a in answers if a.request.references]
    yield from _texts([a for a in known if not a.request.choices], how)
    if told := [a for a in known if labels.offered(a.request)]:
        yield from _labels(told, how)
    yield from _choices([a for a in known if a.choices], how)


def _texts(answers: Sequence[Judged], how: Bootstrap) -> Named:
    bleu = metrics.Pooled(bleu_of, 2 * ORDERS + 2, how, sync_on_compute=False)
    bleu.update([a.request.user for a in answers], bleu_counts(answers))
    yield "bleu", bleu
    legible = [(a, wanted) for a in answers if (wanted := _legible(a.request.references))]
    scored = [(a.request.user, rouge(a.response.text, wanted)) for a, wanted in legible]
    for name in ROUGE:
        yield name, _mean([(user, values[name]) for user, values in scored], how)


def _labels(answers: Sequence[Judged], how: Bootstrap) -> Named:
    said = [(a.request, labels.named(a.response.text, a.request.choices)) for a in answers]
    yield "label_accuracy", _mean([(r.user, float(label in r.references)) for r, label in said], how)
    every = sorted({choice for request, _ in said for choice in request.choices})
    f1 = metrics.Pooled(labels.macro_f1, 3 * len(every), how, sync_on_compute=False)
    f1.update([r.user for r, _ in said], [labels.f1_counts(label, r.references, every) for r, label in said])
    yield "label_f1", f1
    errors = [(r.user, labels.error(label, r)) for r, label in said]
    numbers = [(user, value) for user, value in errors if np.isfinite(value)]
    yield "label_mae", _mean(numbers, how)
    squares = metrics.RootMeanSquare(how, sync_on_compute=False)
    squares.update([user for user, _ in numbers], [value for _, value in numbers])
    yield "label_rmse", squares


def _choices(answers: Sequence[Judged], how: Bootstrap) -> Named:
    for name, by_token in (("choice_accuracy", True), ("choice_accuracy_raw", False)):
        rows = [(a.request.user, labels.likeliest(a.request, a.choices, by_token=by_token)) for a in answers]
        yield name, _mean(rows, how)


def _mean(rows: Sequence[tuple[str, float]], how: Bootstrap) -> metrics.UserMean:
    metric = metrics.UserMean(how, sync_on_compute=False)
    metric.update([user for user, _ in rows], [value for _, value in rows])
    return metric


def _legible(references: Sequence[str]) -> list[str]:
    """The references that have a word for ROUGE; in other scripts it knows none, and is undefined."""
    return [text for text in references if ROUGE_WORD.search(text.lower())]


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1 and ROUGE-L of one answer, F-measures in [0, 1] without stemming, of the reference that fits best."""
    scores = rouge_score([answer], [list(references)], rouge_keys=ROUGE)
    return {name: float(scores[f"{name}_fmeasure"]) for name in ROUGE}


def bleu_counts(answers: Sequence[Judged]) -> list[list[float]]:
    """What each answer adds to BLEU: n-grams that a reference has, all n-grams (n = 1..4), its length and that of the
    reference nearest in length; in sacreBLEU's words (13a)."""
    metric = SacreBLEUScore(n_gram=ORDERS, sync_on_compute=False)
    rows = []
    for a in answers:
        metric.reset()
        metric.update([a.response.text], [list(a.request.references)])
        counted = (metric.numerator, metric.denominator, metric.preds_len.view(1), metric.target_len.view(1))
        rows.append([float(x) for part in counted for x in part])
    return rows


def bleu_of(sums: Floats) -> Floats:
    """BLEU in [0, 1] from sums (..., 10) over a corpus (Papineni et al., 2002); 0 where some order has no match."""
    matched, total = sums[..., :ORDERS], sums[..., ORDERS : 2 * ORDERS]
    length, wanted = sums[..., -2], sums[..., -1]
    some = matched.min(-1) > 0
    shares = np.divide(matched, total, out=np.ones_like(matched), where=(matched > 0) & (total > 0))
    short = np.minimum(0.0, 1.0 - np.divide(wanted, length, out=np.ones_like(length), where=length > 0))
    values: Floats = np.where(some, np.exp(np.log(shares).mean(-1) + short), 0.0)
    return values
