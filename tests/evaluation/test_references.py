"""ROUGE and BLEU against values by hand and against an own count; which answers each figure is of."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.text import sacre_bleu_score

from personalign.evaluation.references import bleu_counts, bleu_of, rouge
from personalign.evaluation.standard import Standard
from personalign.results import ChoiceScore, Figure, Judged
from personalign.types import Message, Request, Response

STANDARD = Standard(
    resamples=300,
    level=0.95,
    few_users=5,
    bootstrap_seed=0,
    length_shrinkage=0.0,
    tie=0.1,
    floors={},
    front=[],
    front_corner=0.0,
)
NAMES = (
    "bleu",
    "rouge1",
    "rougeL",
    "label_accuracy",
    "label_f1",
    "label_mae",
    "label_rmse",
    "choice_accuracy",
    "choice_accuracy_raw",
)
PROMPT = "Just answer with 1, 2, or 3. review: It broke."


def answer(user: str, said: str, *right: str, asked: str = "Go.", choices: tuple[str, ...] = ()) -> Judged:
    request = Request(
        id=f"{user} {said}", user=user, messages=(Message("user", asked),), references=right, choices=choices
    )
    return Judged(request=request, response=Response(request=request.id, text=said), base_nll=1.0, base_tokens=1)


def found(*answers: Judged) -> dict[str, Figure]:
    return {name: figure for name, figure in STANDARD.measure(answers, [], []).items() if name in NAMES}


@pytest.mark.parametrize(
    ("said", "right", "first", "longest"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4, 3 / 4),  # Lin 2004, section 3
        ("the gunman killed police", "police killed the gunman", 1.0, 2 / 4),
        ("a b c", "a x b y c z", 2 * 1.0 * 0.5 / 1.5, 2 * 1.0 * 0.5 / 1.5),
        ("the the the", "the cat", 2 * (1 / 3) * (1 / 2) / (5 / 6), 2 * (1 / 3) * (1 / 2) / (5 / 6)),
        ("Same WORDS, other signs!", "same words other signs", 1.0, 1.0),
        ("nothing shared", "at all", 0.0, 0.0),
        ("", "something", 0.0, 0.0),
    ],
)
def test_rouge_by_hand(said: str, right: str, first: float, longest: float) -> None:
    assert rouge(said, [right]) == pytest.approx({"rouge1": first, "rougeL": longest})
    assert rouge(said, ["zzz", right]) == pytest.approx({"rouge1": first, "rougeL": longest}), "the best reference"


def slow_bleu(pairs: list[tuple[str, list[str]]]) -> float:
    """Papineni et al. (2002) over a corpus, for texts whose words are parted by spaces."""
    matched, total, length, wanted = [0] * 4, [0] * 4, 0, 0
    for said, references in pairs:
        words, others = said.split(), [reference.split() for reference in references]
        length += len(words)
        wanted += min((abs(len(o) - len(words)), len(o)) for o in others)[1]
        for n in range(1, 5):
            mine = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            theirs: Counter[tuple[str, ...]] = Counter()
            for other in others:
                theirs |= Counter(tuple(other[i : i + n]) for i in range(len(other) - n + 1))
            matched[n - 1] += sum((mine & theirs).values())
            total[n - 1] += sum(mine.values())
    if not all(matched):
        return 0.0
    brevity = min(0.0, 1 - wanted / length)
    return math.exp(sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / 4 + brevity)


CORPUS = [
    ("the cat is on the mat", ["there is a cat on the mat", "a cat is on the mat"]),
    ("the cat sat on the", ["the cat sat on the mat"]),
    ("one two three four five six", ["one two three four five six"]),
    ("so", ["so it goes", "so they say now"]),
    ("", ["nothing was said here"]),
]


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        (CORPUS[:1], (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25),
        (CORPUS[1:2], math.exp(1 - 6 / 5)),
        (CORPUS[2:3], 1.0),
        (CORPUS[3:4], 0.0),
        (CORPUS[4:], 0.0),
        (CORPUS, slow_bleu(CORPUS)),
        (CORPUS[1:3], slow_bleu(CORPUS[1:3])),
    ],
)
def test_bleu_by_hand_and_as_torchmetrics_has_it(pairs: list[tuple[str, list[str]]], value: float) -> None:
    counts = bleu_counts([answer("u", said, *right) for said, right in pairs])
    assert bleu_of(np.sum(counts, axis=0)) == pytest.approx(value) == pytest.approx(slow_bleu(pairs))
    theirs = sacre_bleu_score([said for said, _ in pairs], [right for _, right in pairs])
    assert bleu_of(np.sum(counts, axis=0)) == pytest.approx(float(theirs), abs=1e-6)


def test_texts_are_measured_where_there_are_references() -> None:
    answers = [answer(user, said, *right) for user, (said, right) in zip("uuvvw", CORPUS, strict=True)]
    figures = found(*answers, answer("x", "no reference"))
    assert figures.keys() == {"bleu", "rouge1", "rougeL"}
    assert figures["bleu"].value == pytest.approx(slow_bleu(CORPUS))
    per_user: dict[str, list[float]] = {}
    for a in answers:
        per_user.setdefault(a.request.user, []).append(rouge(a.response.text, a.request.references)["rougeL"])
    means = [sum(values) / len(values) for values in per_user.values()]
    assert figures["rougeL"].value == pytest.approx(sum(means) / len(means))
    assert {(f.n, f.users, f.better) for f in figures.values()} == {(5, 3, "higher")}
    assert all(f.low <= f.value <= f.high and f.low < f.high for f in figures.values())
    assert found(*answers[::-1]) == found(*answers)


def test_rouge_leaves_out_what_it_cannot_read() -> None:
    figures = found(answer("u", "猫在垫子上", "猫在垫子上"), answer("v", "a cat", "a cat"))
    assert (figures["rouge1"].value, figures["rouge1"].n, figures["bleu"].n) == (1.0, 1, 2)
    assert found(answer("u", "猫", "猫")).keys() == {"bleu"}


def test_labels_are_measured_where_the_request_tells_them() -> None:
    stars = ("1", "2", "3")
    answers = [
        answer("u", "1", "1", asked=PROMPT, choices=stars),
        answer("u", "I say 2.", "3", asked=PROMPT, choices=stars),
        answer("v", "bad", "1", asked=PROMPT, choices=stars),
    ]
    figures = found(*answers)
    assert figures.keys() == {"label_accuracy", "label_f1", "label_mae", "label_rmse"}
    assert figures["label_accuracy"].value == pytest.approx((0.5 + 0.0) / 2)
    assert figures["label_mae"].value == pytest.approx((0.5 + 2.0) / 2)
    assert figures["label_rmse"].value == pytest.approx(math.sqrt(((0 + 1) / 2 + 4) / 2))
    assert figures["label_f1"].value == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert {(f.n, f.users) for f in figures.values()} == {(3, 2)}
    sides = {name: figure.better for name, figure in figures.items() if figure.better != "higher"}
    assert sides == {"label_mae": "lower", "label_rmse": "lower"}
    assert found(*(replace(a, request=replace(a.request, messages=(Message("user", "?"),))) for a in answers)) == {}
    words = [answer("u", "yes", "yes", asked="yes or no?", choices=("yes", "no"))]
    assert found(*words).keys() == {"label_accuracy", "label_f1"}, "an error is of numbers alone"


def test_errors_of_users_with_one_request_equal_those_of_torchmetrics() -> None:
    """LaMP's users have one request each; an answer without a label errs by as much as can be."""
    said, right = ("1", "3", "3", "2", "no label"), (1.0, 1.0, 2.0, 2.0, 1.0)
    figures = found(
        *(
            answer(f"u{n}", one, f"{wanted:.0f}", asked=PROMPT, choices=("1", "2", "3"))
            for n, (one, wanted) in enumerate(zip(said, right, strict=True))
        )
    )
    taken, wanted = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), torch.tensor(right)
    assert figures["label_mae"].value == pytest.approx(float(mean_absolute_error(taken, wanted)))
    rmse = figures["label_rmse"]
    assert rmse.value == pytest.approx(float(mean_squared_error(taken, wanted, squared=False)))
    assert rmse.low < rmse.value < rmse.high and rmse.n == rmse.users == 5


def test_choices_are_measured_where_they_were_scored() -> None:
    options = ("short", "a long one")
    unscored = answer("u", "blah", "a long one", choices=options)
    scored = [
        replace(unscored, choices=(ChoiceScore(-4.0, 2), ChoiceScore(-6.0, 6))),
        replace(answer("v", "blah", "short", choices=options), choices=(ChoiceScore(-4.0, 2), ChoiceScore(-6.0, 6))),
        replace(answer("v", "more", "short", choices=options), choices=(ChoiceScore(-1.0, 2), ChoiceScore(-6.0, 6))),
    ]
    figures = found(*scored)
    assert found(unscored) == {} and figures.keys() == {"choice_accuracy", "choice_accuracy_raw"}
    assert figures["choice_accuracy"].value == pytest.approx((1.0 + 0.5) / 2)
    assert figures["choice_accuracy_raw"].value == pytest.approx((0.0 + 1.0) / 2)
    assert {(f.n, f.users, f.better) for f in figures.values()} == {(3, 2, "higher")}
    with pytest.raises(ValueError, match=r"log-probability of the choice 'a long one' of request 'u blah'"):
        found(replace(unscored, choices=(ChoiceScore(-4.0, 2), ChoiceScore(math.nan, 6))))
