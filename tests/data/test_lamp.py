"""LaMP's seven tasks in made-up files of its format, what is wrong with broken ones, and a real copy of task 7."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from personalign.contracts import UserError
from personalign.data.lamp import TASKS, LaMP

REAL = Path(os.environ.get("PERSONALIGN_DATA", "")) / "lamp7_dev" / "lamp7_dev.jsonl"
BODY = "A quiet film about a lighthouse keeper and his daughter."
TITLES = [
    {"title": "Bees at night", "text": "They sleep.", "id": "0"},
    {"title": "Wasps", "text": "They do not.", "id": "1"},
]
# For each task: what is asked, the target, a profile, how it is told, the choices.
CASES: dict[int, tuple[str, str, list[dict[str, Any]], list[str], tuple[str, ...]]] = {
    1: (
        'For an author who has written the paper with the title "On tides", which reference is related? Just answer '
        'with [1] or [2] without explanation. [1]: "Moons" [2]: "Suns"',
        "[2]",
        [{"title": "Old clocks", "abstract": "We mend clocks.", "id": "7"}],
        ["Old clocks"],
        ("[1]", "[2]"),
    ),
    2: (
        "Which tag does this movie relate to among the following tags? Just answer with the tag name without further "
        f"explanation. tags: [sci-fi, dark comedy, comedy] description: {BODY} [sic]",
        "dark comedy",
        [{"tag": "comedy", "description": "Two {clowns} and a goat.", "id": "3"}],
        ['the tag for the movie: "Two {clowns} and a goat." is "comedy"'],
        ("sci-fi", "dark comedy", "comedy"),
    ),
    3: (
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
        "further explanation. review: It broke.",
        "1",
        [{"text": "Lovely.", "score": "5", "id": "3"}, {"text": "Meh.", "score": 3, "id": "4"}],
        ['5 is the score for "Lovely."', '3 is the score for "Meh."'],
        ("1", "2", "3", "4", "5"),
    ),
    4: (
        "Generate a headline for the following article: Ants carry crumbs.",
        "Strong ants",
        TITLES,
        ['"Bees at night" is the title for "They sleep."', '"Wasps" is the title for "They do not."'],
        (),
    ),
    5: (
        "Generate a title for the following abstract of a paper: We count ants.",
        "Counting ants",
        [{"title": "Counting bees", "abstract": "We count bees.", "id": "1"}],
        ['"Counting bees" is the title for "We count bees."'],
        (),
    ),
    6: (
        "Generate a subject for the following email: Dear all, lunch is at one.",
        "Lunch",
        TITLES,
        ['"Bees at night" is the title for "They sleep."', '"Wasps" is the title for "They do not."'],
        (),
    ),
    7: (
        "Paraphrase the following tweet without any explanation before or after it: I am tired today.",
        "sooo tired today",
        [{"text": "love this song ", "id": "1"}],
        ["love this song "],
        (),
    ),
}  # fmt: skip


def folder(
    tmp_path: Path, task: int, rows: list[dict[str, Any]], golds: list[dict[str, Any]], split: str = "dev"
) -> Path:
    whole = {"task": f"LaMP_{task}", "golds": golds}
    (tmp_path / f"{split}_questions.json").write_text(json.dumps(rows))
    (tmp_path / f"{split}_outputs.json").write_text(json.dumps(whole))
    return tmp_path


def part(path: Path | str, task: Any, split: Any = "dev", limit: int | None = None) -> LaMP:
    return LaMP(path=str(path), task=task, split=split, limit=limit)


def one(tmp_path: Path, task: int, **changes: Any) -> LaMP:
    """A file with the row of CASES, changed."""
    prompt, target, profile, _, _ = CASES[task]
    row = {"id": "610", "input": prompt, "profile": profile, **changes}
    return part(folder(tmp_path, task, [row], [{"id": "610", "output": target}]), task)


def said(data: LaMP, user: str = "610") -> list[str]:
    return [event.payload["text"] for event in data.events(user)]


@pytest.mark.parametrize("task", TASKS)
def test_a_row_is_a_user_with_a_past_and_a_request(task: int, tmp_path: Path) -> None:
    prompt, target, _, told, choices = CASES[task]
    data = one(tmp_path, task)
    assert data.users() == ("610",)
    (request,) = data.requests("test")
    assert (request.user, request.messages[0].content, request.references) == ("610", prompt, (target,))
    assert request.choices == choices and request.time == float("inf")
    assert said(data) == told
    assert [e.time for e in data.events("610")] == [float(n) for n in range(len(told))]
    assert len({e.id for e in data.events("610")}) == len(told)
    assert {e.kind for e in data.events("610")} == {"text"}
    assert data.requests("train") == data.requests("validation") == data.pairs("train") == ()


def test_the_outputs_file_may_be_written_over_many_lines(tmp_path: Path) -> None:
    data = one(tmp_path, 4)
    path = tmp_path / "dev_outputs.json"
    path.write_text("\n" + json.dumps(json.loads(path.read_text()), indent=2) + "\n")
    assert data.requests("test")[0].references == ("Strong ants",)
    path.write_text(path.read_text().replace('"golds":', '"golds"'))
    with pytest.raises(UserError, match=r"dev_outputs.json, line 4: not JSON: Expecting ':' delimiter"):
        one_again = part(tmp_path, 4)
        one_again.requests("test")


def test_outputs_are_found_by_id_in_any_order(tmp_path: Path) -> None:
    rows = [{"id": n, "input": f"Paraphrase: tweet {n}", "profile": []} for n in range(4)]
    golds = [{"id": str(n), "output": f"gold {n}"} for n in (2, 0, 3, 1, 9)]
    data = part(folder(tmp_path, 7, rows, golds), 7)
    assert [r.references[0] for r in data.requests("test")] == [f"gold {n}" for n in range(4)]
    assert data.users() == ("0", "1", "2", "3") and data.events("0") == ()


def test_limit_and_split(tmp_path: Path) -> None:
    rows = [{"id": str(n), "input": f"Paraphrase: tweet {n}", "profile": []} for n in range(4)]
    golds = [{"id": str(n), "output": "gold"} for n in range(4)]
    folder(tmp_path, 7, rows, golds, split="train")
    folder(tmp_path, 7, rows[:3], golds)
    assert len(part(tmp_path, 7).users()) == 3 and len(part(tmp_path, 7, "train").users()) == 4
    assert part(tmp_path, 7, limit=2).users() == ("0", "1")
    prints = {part(tmp_path, 7, *more).fingerprint() for more in ((), ("train",), ("dev", 2))}
    assert len(prints) == 3 and part(tmp_path, 7).fingerprint() in prints


def test_dates_order_the_past(tmp_path: Path) -> None:
    profile = [
        {"text": "third", "date": "2012-10-01"}, {"text": "first", "date": 2011},
        {"text": "second", "date": "2012-9-30"}, {"text": "fourth", "date": "2012-10-01"},
    ]  # fmt: skip
    assert said(one(tmp_path, 7, profile=profile)) == ["first", "second", "third", "fourth"]


def test_a_blank_text_is_no_event(tmp_path: Path) -> None:
    profile = [{"title": "", "text": "a"}, {"title": "b", "text": " "}, {"title": "c", "text": "d"}]
    assert said(one(tmp_path, 4, profile=profile)) == ['"c" is the title for "d"']


def test_nothing_in_the_past_gives_the_target_away(tmp_path: Path) -> None:
    article = "Ants carry crumbs that are heavier than they are"
    profile = [
        {"title": "STRONG  ants!", "text": "Another text with that very title."},
        {"title": "Ants", "text": f"{article}!"},
        {"title": "Not so strong ants", "text": "Crumbs."},
    ]
    asked = f"Generate a headline for the following article: {article}. They rest at night."
    assert said(one(tmp_path, 4, profile=profile, input=asked)) == ['"Not so strong ants" is the title for "Crumbs."']
    tweets = [{"text": "Sooo tired today  "}, {"text": "sooo tired today, really"}]
    assert said(one(tmp_path, 7, profile=tweets)) == ["sooo tired today, really"], "three words may recur by chance"


def test_a_long_target_is_in_no_text_of_the_past(tmp_path: Path) -> None:
    target = "Why ants carry crumbs home"
    profile = [
        {"title": "More on ants", "text": f"As we wrote in “{target.upper()}”, they do."},
        {"title": f"{target}, part two", "text": "They rest."},
        {"title": "Why ants carry crumbs", "text": "Home is where they rest."},
    ]
    prompt = CASES[4][0]
    path = folder(tmp_path, 4, [{"id": "1", "input": prompt, "profile": profile}], [{"id": "1", "output": target}])
    assert said(part(path, 4), "1") == ['"Why ants carry crumbs" is the title for "Home is where they rest."']


def test_a_label_in_the_past_is_no_leak_but_the_same_text_is(tmp_path: Path) -> None:
    profile = [{"tag": "dark comedy", "description": "A goat."}, {"tag": "dark comedy", "description": BODY.upper()}]
    assert said(one(tmp_path, 2, profile=profile)) == ['the tag for the movie: "A goat." is "dark comedy"']


@pytest.mark.parametrize(
    ("task", "changes", "expected"),
    [
        (4, {"id": None}, r'questions.json, line 1 \(item 1\), field "id": is missing'),
        (4, {"id": "611"}, r'item 1\), id 611, field "id": dev_outputs.json has no output for it'),
        (4, {"input": None}, r'item 1\), id 610, field "input": is missing'),
        (4, {"input": 7}, r'id 610, field "input": expected a text, found a number'),
        (4, {"profile": {}}, r'id 610, field "profile": expected a list, found an object'),
        (4, {"profile": None}, r'id 610, field "profile": is missing'),
        (4, {"profile": ["x"]}, r'id 610, field "profile\[0\]": expected an object, found a text'),
        (4, {"profile": [TITLES[0], {"text": "x"}]}, r'id 610, field "profile\[1\].title": is missing'),
        (4, {"profile": [{"titel": "x", "text": "x"}]}, r"title\": is missing; the row has 'titel'"),
        (5, {"profile": TITLES}, r'field "profile\[0\].abstract": is missing'),
        (3, {"profile": [{"text": "x", "score": 4.5}]}, r'profile\[0\].score": expected a text or a whole number'),
        (7, {"profile": [{"text": "x", "date": "May 2012"}]}, r"profile\[0\].date\": 'May 2012' is no date such as"),
        (2, {"input": "Which tag? description: x"}, 'id 610, field "input": expected different tags to choose from'),
        (2, {"input": "tags: [comedy] description: x"}, "expected different tags to choose from"),
        (2, {"input": "tags: [comedy, war] x"}, 'its output \'dark comedy\' is none of the labels comedy'),
    ],
)  # fmt: skip
def test_broken_rows(task: int, changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected):
        one(tmp_path, task, **changes).users()


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"task": "LaMP_4", "golds": [{"id": "610"}]}, r'line 1, id 610, field "golds\[0\].output": is missing'),
        ({"task": "LaMP_4", "golds": [{"id": "610", "output": " "}]}, r'golds\[0\].output": is empty'),
        ({"task": "LaMP_4", "golds": [{"output": "x"}]}, r'line 1, field "golds\[0\].id": is missing'),
        ({"task": "LaMP_4", "golds": [{"id": 1, "output": "x"}] * 2}, r"golds\[1\].id\": '1' was there before"),
        ({"task": "LaMP_4", "golds": {}}, r'field "golds": expected a list, found an object'),
        ({"task": "LaMP_4"}, r'field "golds": is missing'),
        ({"golds": []}, r'field "task": is missing'),
        ({"task": "LaMP_3", "golds": []}, r"field \"task\": is 'LaMP_3', and data.task is 4"),
        ([7], r"line 1 \(item 1\): expected an object"),
    ],
)  # fmt: skip
def test_broken_outputs(outputs: Any, expected: str, tmp_path: Path) -> None:
    data = one(tmp_path, 4)
    (tmp_path / "dev_outputs.json").write_text(json.dumps(outputs))
    with pytest.raises(UserError, match=expected):
        data.users()


def test_an_id_that_comes_twice(tmp_path: Path) -> None:
    row = {"id": "1", "input": "Paraphrase: x", "profile": []}
    path = folder(tmp_path, 7, [row, row], [{"id": "1", "output": "y"}])
    for limit in (None, 1):
        with pytest.raises(UserError, match=r"item 2\), field \"id\": '1' was there before"):
            part(path, 7, limit=limit).users()


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file or folder .*; download the questions and outputs"):
        part(tmp_path / "none", 7).users()
    one(tmp_path, 7)
    with pytest.raises(UserError, match=r"data.path: .* holds no test_outputs.json; did you mean .*; download"):
        part(tmp_path, 7, "test").users()
    (tmp_path / "dev_questions.json").unlink()
    with pytest.raises(UserError, match=r"holds no dev_questions.json"):
        part(tmp_path, 7).users()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


@pytest.mark.skipif(
    "PERSONALIGN_DATA" not in os.environ or not REAL.is_file(), reason="PERSONALIGN_DATA names no real copy"
)
def test_real_copy(tmp_path: Path) -> None:
    """A copy of LaMP-7 whose rows hold their outputs and bare texts, and of which one has a line break in a text."""
    rows, at, decoder = [], 0, json.JSONDecoder(strict=False)
    text = REAL.read_text(encoding="utf-8").rstrip()
    while at < len(text):
        row, at = decoder.raw_decode(text, at)
        rows.append(row)
        at += len(text[at:]) - len(text[at:].lstrip())
    asked = [{**r, "profile": [{"id": str(n), "text": p} for n, p in enumerate(r["profile"])]} for r in rows]
    golds = [{"id": row["id"], "output": row["output"]} for row in rows]
    data = part(folder(tmp_path, 7, asked, golds), 7)
    assert len(data.users()) == len(data.requests("test")) == len(rows) == 749
    told = sum(len(data.events(user)) for user in data.users())
    leaks = sum(words(p) == words(r["output"]) for r in rows for p in r["profile"])
    assert told == sum(len(r["profile"]) for r in rows) - leaks == 12970 - 12
    for request, row in zip(data.requests("test"), rows, strict=True):
        assert request.references == (row["output"].strip(),)
        assert all(words(e.payload["text"]) != words(row["output"]) for e in data.events(request.user))
