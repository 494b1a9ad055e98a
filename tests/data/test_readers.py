"""The reader: every kind of broken file is named by file, line and field, and nothing else comes out."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalign.contracts import UserError
from personalign.data.alignx_psoups import AlignXPSoups
from personalign.data.jsonl import Jsonl, check
from personalign.data.lamp import LaMP
from personalign.data.prefeval import PrefEval
from personalign.data.psoups_eval import PSoupsEval
from personalign.data.readers import LISTED, Reader, nearest
from personalign.data.splits import check_fractions, check_splits, digest, normalise, split_of

fuzz = settings(max_examples=60, deadline=None, database=None)


def read(data: bytes, folder: Path) -> list[dict[str, object]]:
    path = folder / "rows.jsonl"
    path.write_bytes(data)
    reader = Reader()
    rows = [dict(row.values) for row in reader.rows(path)]
    reader.finish({})
    return rows


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "holds no rows"),
        (b"\n \n\t\n", "holds no rows"),
        (b"[]", "holds no rows"),
        (b"\xef\xbb\xbf", "holds no rows"),
        (b'{"a": 1}\n{"a": \xff}', "line 2: not UTF-8, at byte 0xff"),
        ('{"a": 1}'.encode("utf-16"), "line 1: not UTF-8, at byte 0xff (it looks like UTF-16)"),
        (b'{"a": 1}\n\n{"a": 1', "line 3: not JSON"),
        (b'{"a": 1} {"a": 2}', "line 1: not JSON: there is more after the first value, at column 9"),
        (b'{"a": 1}\n7', "line 2: expected an object {...}, found a number"),
        (b'null\n{"a": 1}', "line 1: expected an object {...}, found null"),
        (b'{"a": NaN}', "line 1: not JSON that can be read: a number is not finite"),
        (b'{"a": -Infinity}', "a number is not finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number is not finite or too long"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (rb'{"a": "\ud83d"}', "half of a surrogate pair"),
        (b'[\n{"a": 1},\n{"a": }]', "line 3 (item 2): not JSON"),
        (b'[{"a": 1}\n{"a": 2}]', "line 2 (item 2): not JSON: expected ',' or ']'"),
        (b'[{"a": 1},\n', "line 2 (item 2): not JSON"),
        (b'[{"a": 1}]\n\n]', "line 3 (item 2): not JSON: there is more after"),
        (b'[{"a": 1},\n"b"]', "line 2 (item 2): expected an object {...}, found a text"),
        (b'[{"a": 1},\n"\xff"]', "line 2: not UTF-8"),
        (b'\n{\n"a": 1,\n"b" 2}', "line 4: not JSON: Expecting ':' delimiter, at column 5"),
        (b'\n {\n"a": 1,\n"b": "\xff"}', "line 4: not UTF-8"),
        (b'{\n"a": 1}\n{\n"a": 2}', "line 1: not JSON: there is more after the first value"),
    ],
)
def test_broken_file_is_named_with_its_line(data: bytes, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(data, tmp_path)
    first = str(caught.value).splitlines()[0]
    assert first.startswith(str(tmp_path / "rows.jsonl")) and expected in first


def test_forms_of_one_content_read_alike(tmp_path: Path) -> None:
    rows = [{"text": "line\u2028separator \x85 and \x1c", "n": 1}, {"text": "zwei \U0001f980", "n": [2, {}]}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    forms = [
        "\n".join(lines),
        "\r\n".join(lines) + "\r\n",
        "\ufeff\n\n" + "\n \n".join(lines) + "\n\n",
        "\n".join(json.dumps(row) for row in rows),
        json.dumps(rows),
        "\ufeff \n" + json.dumps(rows, indent=4, ensure_ascii=False),
    ]
    assert all(read(form.encode(), tmp_path) == rows for form in forms)
    assert read(json.dumps(rows[0], indent=2).encode(), tmp_path) == rows[:1], "one object over several lines"


def test_a_megabyte_of_text(tmp_path: Path) -> None:
    text = "<|im_start|>system\n" + "höhe " * 200_000
    assert read(json.dumps({"text": text}).encode(), tmp_path) == [{"text": text}]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


tables = st.lists(st.dictionaries(st.text(), values, max_size=4), min_size=1, max_size=4)


@fuzz
@given(tables, st.booleans(), st.booleans())
def test_reads_what_json_wrote(rows: list[dict[str, object]], escaped: bool, array: bool) -> None:
    rows = [json.loads(json.dumps(row)) for row in rows]
    text = json.dumps(rows, ensure_ascii=escaped, indent=1) if array else ""
    text = text or "\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        assert read(text.encode(), Path(folder)) == rows


def test_lines_of_an_array_are_where_they_stand(tmp_path: Path) -> None:
    text = json.dumps([{"name": f"row {n}", "wrong": {"deep": [n]}} for n in range(9)], indent=2)
    path = tmp_path / "rows.json"
    path.write_text(text)
    reader = Reader()
    for row in reader.rows(path):
        row.number("name")
    opening = [n for n, line in enumerate(text.split("\n"), start=1) if line == "  {"]
    places = [f"{path}, line {line} (item {n})" for n, line in enumerate(opening, start=1)]
    assert reader.found() == [f'{place}, field "name": expected a number, found a text' for place in places]


LOOKUPS: list[tuple[Callable[[object], object], str, str]] = [
    (lambda row: row.text("x"), '{"y": 1}', "is missing"),
    (lambda row: row.text("chosen"), '{"choosen": "a"}', "is missing; the row has 'choosen'"),
    (lambda row: row.text("x"), '{"x": null}', "is missing"),
    (lambda row: row.text("x"), '{"x": 3}', "expected a text, found a number"),
    (lambda row: row.text("x"), '{"x": " \\n "}', "is empty"),
    (lambda row: row.label("x"), '{"x": 1.5}', "expected a text or a whole number, found a number"),
    (lambda row: row.label("x"), '{"x": ""}', "is empty"),
    (lambda row: row.number("x"), '{"x": true}', "expected a number, found true or false"),
    (lambda row: row.number("x"), '{"x": 1e999}', "is too large a number"),
    (lambda row: row.number("x"), '{"x": 1' + "0" * 400 + "}", "is too large a number"),
    (lambda row: row.number("x", -1, 1), '{"x": 1.5}', "expected a number from -1 to 1, found 1.5"),
    (lambda row: row.time("x"), '{"x": "yesterday"}', "'yesterday' is no ISO date"),
    (lambda row: row.time("x"), '{"x": []}', "expected a number or an ISO date, found a list"),
    (lambda row: row.one_of("x", ("test", "a")), '{"x": "tets"}', "'tets' is unknown; did you mean 'test'?"),
    (lambda row: row.one_of("x", ("a", "b")), '{"x": "kind"}', "'kind' is unknown; there are a, b"),
    (lambda row: row.numbers("x"), '{"x": {}}', "is empty or has an empty name"),
    (lambda row: row.numbers("x"), '{"x": {" ": 1}}', "is empty or has an empty name"),
    (lambda row: row.numbers("x"), '{"x": [1]}', "expected an object, found a list"),
    (lambda row: row.texts("x"), '{"x": "a"}', "expected a list, found a text"),
    (lambda row: row.options("x"), '{"x": ["a"]}', "expected at least two texts to choose from"),
    (lambda row: row.options("x"), '{"x": ["a", "b", "a"]}', "is the same text as one before it"),
    (lambda row: row.options("x"), '{"y": 1}', "is missing"),
    (lambda row: row.only("prompt"), '{"promt": 1}', "is unknown here; did you mean 'prompt'?"),
]


@pytest.mark.parametrize(("look", "line", "expected"), LOOKUPS)
def test_field_problems(look: Callable[[object], object], line: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line)
    reader = Reader()
    for row in reader.rows(path):
        look(row)
    assert len(reader.found()) == 1
    assert reader.found()[0].startswith(f'{path}, line 1, field "') and expected in reader.found()[0]


def test_nested_fields_are_named_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"turns": [{"role": "user"}, 3], "tags": ["a", ""], "stance": {"warmth": "x"}}')
    reader = Reader()
    for row in reader.rows(path):
        for turn in row.rows("turns"):
            turn.text("role")
        row.texts("tags")
        row.numbers("stance")
    assert [problem.split("field ")[1] for problem in reader.found()] == [
        '"turns[1]": expected an object, found a number',
        '"turns[1].role": is missing',
        '"tags[1]": is empty',
        '"stance.warmth": expected a number, found a text',
    ]


def test_values_of_good_fields(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"t": " as it is ", "i": 17, "n": -2, "e": null, "d": "2025-03-01", "z": "2025-03-01T02:00:00+02:00"}'
    )
    reader = Reader()
    (row,) = reader.rows(path)
    assert (row.text("t"), row.label("i"), row.number("n")) == (" as it is ", "17", -2.0)
    assert row.time("d") == row.time("z") == 20148 * 86400.0  # days from 1970 to 1 March 2025
    assert not row.has("e") and not row.has("absent") and row.has("t")
    assert len(reader.finish({})) == 64


def test_at_most_twenty_problems_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(b"{'\n" * (LISTED + 7), tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == LISTED + 1 and lines[-1] == "and 7 more problems"


def test_a_long_value_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"split": "x" * 10_000, "y" * 10_000: 1}))
    reader = Reader()
    for row in reader.rows(path):
        row.one_of("split", ("test",))
        row.only("split")
    assert len(reader.found()) == 2 and all(len(problem) < 400 for problem in reader.found())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pears.jsonl", "no such file; did you mean 'pairs.jsonl'?"),
        ("folder", "is a folder, expected a file"),
        ("pairs.jsonl/inside", "cannot be read: Not a directory"),
        ("nowhere/pairs.jsonl", "no such file"),
        ("n" * 5000, "cannot be read: File name too long"),
        ("nu\0ll", "cannot be read"),
    ],
)
def test_files_that_cannot_be_opened(name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}")
    (tmp_path / "folder").mkdir()
    reader = Reader()
    assert list(reader.rows(tmp_path / name)) == []
    with pytest.raises(UserError, match=expected.replace("?", r"\?")):
        reader.finish({})


def test_hash_is_of_the_bytes_and_the_settings(tmp_path: Path) -> None:
    def of(data: bytes, values: dict[str, object]) -> str:
        path = tmp_path / hashlib.md5(data).hexdigest()
        path.write_bytes(data)
        reader = Reader()
        list(reader.rows(path))
        return reader.finish(values)

    assert of(b"{}", {"a": 1, "b": 2}) == of(b"{}", {"b": 2, "a": 1})
    assert len({of(b"{}", {"a": 1}), of(b"{} ", {"a": 1}), of(b"{}", {"a": 2}), of(b"{}", {})}) == 4


def test_nearest() -> None:
    assert nearest("fiendly", ["friendly", "phd"]) == "; did you mean 'friendly'?"
    assert nearest("x", []) == nearest("x", ["aa"], few=0) == ""
    assert nearest("x", map(str, range(20))) == "; there are 0, 1, 10, 11, 12, 13, 14, 15, ..."


# Whatever the bytes, a data part reads them or says what is wrong with them.

SOURCES = st.sampled_from(
    [
        b'{"id": "u", "truth": {"d": 1}}',
        b'{"user": "u", "kind": "choice", "prompt": "p", "chosen": "c", "rejected": "r", "time": 1}',
        b'{"user": "u", "messages": [{"role": "user", "content": "c"}], "time": "2025-01-01"}',
        b'[{"request": "r", "chosen": "c", "rejected": "r", "labels": {"d": 0.5}}]',
        b'{"prompt": "p", "chosen": "c", "rejected": "r", "ground_truth_persona": "g", "profile": "f", '
        b'"Pair-wise Comparative Feedback": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}',
        b'{"id": "u", "input": "[a, b] x", "profile": [{"tag": "a", "description": "d", "date": "2012-1"}]}',
        b'{\n"task": "LaMP_2", "golds": [{"id": "u", "output": "a"}]}',
        b'{"preference": "p", "question": "q", "classification_task_options": ["a", "b"]}',
    ]
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(SOURCES) + b"\n" + draw(SOURCES))
    pieces = st.binary(max_size=3) | st.sampled_from([rb"\ud800", b"[[{", b'""'])
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(pieces)
    return bytes(data)


@settings(fuzz, max_examples=250)
@given(st.binary(max_size=60) | damaged())
def test_no_bytes_give_a_traceback(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("users", "events", "requests", "pairs"):
            (folder / f"{file}.jsonl").write_bytes(data)
        for file in ("dev_questions.json", "dev_outputs.json"):
            (folder / file).write_bytes(data)
        (folder / "train_questions.json").write_bytes(data)
        (folder / "train_outputs.json").write_text('{"task": "LaMP_2", "golds": [{"id": "u", "output": "a"}]}')
        fractions = {"validation": 0.1, "test": 0.5, "seed": 0, "limit": None}
        stored = {**fractions, "store": None}
        files = {"users": None, "events": None, "requests": None, "pairs": None}
        parts = [
            Jsonl(path=name, **files, **stored),
            *(Jsonl(path=None, **{**files, file: f"{name}/pairs.jsonl"}, **stored) for file in files),
            AlignXPSoups(path=name, files=["pairs"], personas=None, history=4, stances={}, declared=False, **fractions),
            PSoupsEval(path=name, files=["users"], statements={}, stances={}, users={"u": []}, limit=None),
            PrefEval(path=f"{name}/users.jsonl", files=None, limit=None),
            LaMP(path=name, task=2, split="dev", limit=None),
            LaMP(path=name, task=2, split="train", limit=1),
        ]
        for part in parts:
            try:
                for user in part.users():
                    part.events(user)
                    user.encode()
                part.requests("test")
                assert part.fingerprint()
            except UserError as error:
                assert str(error).strip()
        assert all(problem.strip() for problem in check(name))


# Splits.


def test_split_is_the_hash_that_is_documented() -> None:
    def by_hand(words: str, seed: int) -> float:
        parts = [b"split", str(seed).encode(), words.encode()]
        joined = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return int(hashlib.sha256(joined).hexdigest()[:16], 16) / 16**16

    for n in range(300):
        draw = by_hand(f"prompt number {n}", n % 3)
        expected = "test" if draw < 0.3 else "validation" if draw < 0.5 else "train"
        assert split_of(f" Prompt, NUMBER {n}!", validation=0.2, test=0.3, seed=n % 3) == expected


def test_split_fractions_are_met_and_extremes_are_exact() -> None:
    prompts = [f"question {n}" for n in range(4000)]
    found = [split_of(prompt, validation=0.1, test=0.25, seed=5) for prompt in prompts]
    assert abs(found.count("test") / 4000 - 0.25) < 0.03
    assert abs(found.count("validation") / 4000 - 0.1) < 0.02
    assert {split_of(prompt, validation=0.0, test=0.0, seed=5) for prompt in prompts} == {"train"}
    assert {split_of(prompt, validation=0.0, test=1.0, seed=5) for prompt in prompts} == {"test"}
    held = {p for p in prompts if split_of(p, validation=0.0, test=0.25, seed=5) == "test"}
    assert held == {p for p, split in zip(prompts, found, strict=True) if split == "test"}


def test_normalise() -> None:
    assert normalise("What's  up,\nDOC?") == normalise("what s up doc") == "what s up doc"
    assert normalise("\uff21\uff22\uff23 Stra\u00dfe") == "abc strasse"
    assert normalise("?!  ") == "?!" and normalise("?!") != normalise("...")


def test_digest_keeps_its_parts_apart() -> None:
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", "")}) == 4


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(UserError, match="more than 1"):
        check_fractions(0.5, 0.6)
    check_fractions(0.9, 0.1)
    check_splits({"train", "test"}, {"validation": 0.0, "test": 0.1}, 9)
    with pytest.raises(UserError, match="no prompt fell into validation and test: 1 different"):
        check_splits({"train"}, {"validation": 0.2, "test": 0.1}, 1)
