"""The page and the pictures: whole, self-contained, and safe whatever users and models wrote."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from personalign.contracts import UserError
from personalign.reporting.answers import LONGEST, PROMPTS
from personalign.reporting.collect import Missing, collect
from personalign.reporting.curve import by_round
from personalign.reporting.drawing import drawing
from personalign.reporting.figure import inline, panels, picture
from personalign.reporting.front import COST, _draw, priced, unbeaten
from personalign.reporting.html import page
from personalign.reporting.plain import escaped, markdown
from personalign.reporting.report import FORMATS, print_table, report
from personalign.reporting.terminal import show

Fakes = Callable[[str], Any]
VOID = {"meta", "br"}
HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'\"\x00\x1b[31m\u202eabc\ud800 $x_{1"


class Outline(HTMLParser):
    """Checks that elements close in order; keeps tags, attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_fetches_nothing(demo: Path) -> None:
    text = page(collect(demo))
    outline = Outline(text)
    assert not outline.tags.keys() & {"script", "link", "img", "iframe", "object"}
    assert not [name for name, _ in outline.attributes if name in ("src", "srcset", "href") or name.startswith("on")]
    assert not re.findall(r"@import|url\((?!#)", text)
    assert all(link.startswith("#") for name, link in outline.attributes if name == "xlink:href")
    assert outline.tags["article"] == 8 * 24 and outline.tags["details"] == 8 + 1
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_ids_are_unique_and_references_resolve(demo: Path) -> None:
    text = page(collect(demo))
    ids = Counter(re.findall(r'\bid="([^"]+)"', text))
    assert max(ids.values()) == 1
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'xlink:href="#([^"]+)"', text))
    assert used and used <= ids.keys()


def test_the_page_says_what_the_files_say(demo: Path) -> None:
    results = collect(demo)
    said = Outline(page(results)).text
    row = results.rows[5]
    assert row.against is not None
    for part in (
        f"{row.against.win} / {row.against.tie} / {row.against.lose}",
        f"+{row.metrics['reward_difference'].value:.2f}",
        row.runs[0].answers[0]["text"],
        "I like warm, encouraging answers and formal language and the general idea.",
        "arXiv 2410.04070 v7, Table 2",
        row.runs[0].record["identity"],
        "code.revision: 0f3c1a9be2d44c60a7c1f5b1de8e7a9035c1d2aa",
        "8 rows, 8 users, 24 held-out requests, 1 seed",
    ):
        assert part in said
    assert page(results) == page(collect(demo))


def test_texts_from_outside_are_text(tmp_path: Path, fakes: Fakes) -> None:
    hostile = HOSTILE.replace("\x00", "")
    identity = fakes("write_run")(tmp_path / "runs", "base", name=hostile, flags=[hostile])
    record = json.loads((tmp_path / "runs" / identity / "record.json").read_text())
    record["users"] = {HOSTILE: {"statement": HOSTILE, "stance": {HOSTILE: 1.0}}}
    record["provenance"], record["cost"] = {HOSTILE: HOSTILE}, {HOSTILE: 1}
    record["metrics"][f"reward.{HOSTILE}"] = record["metrics"]["reward"]
    (tmp_path / "runs" / identity / "record.json").write_text(json.dumps(record))
    truth = {"total": 1.0, "dimensions": {HOSTILE: 0.5}}
    line = {
        "request": "r",
        "user": HOSTILE,
        "prompt": HOSTILE,
        "text": HOSTILE,
        "truth": truth,
    }
    (tmp_path / "runs" / identity / "answers.jsonl").write_text(json.dumps(line) + "\n")
    results = collect(tmp_path / "runs")
    published = (
        {"title": HOSTILE, "source": HOSTILE, "columns": {HOSTILE: None}, "rows": [{"name": HOSTILE, "values": {}}]},
    )
    missing = (Missing(HOSTILE, (HOSTILE,), "failed", HOSTILE),)
    results = replace(results, title=HOSTILE, published=published, missing=missing, baseline=HOSTILE)
    text = page(results)
    text.encode("utf-8")
    outline = Outline(text)
    assert not outline.tags.keys() & {"script", "img"}
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800]", text)
    assert outline.text.count("<script>alert(1)</script>") >= 15
    ElementTree.fromstring(picture(results, "svg"))
    show(results, [], Console(file=io.StringIO(), width=100))


def test_long_answers_and_many_prompts_are_cut_and_told(tmp_path: Path, fakes: Fakes) -> None:
    identity = fakes("write_run")(tmp_path, "base")
    lines = [
        {"request": str(i), "user": "u", "prompt": "p", "text": "x" * (LONGEST + 7), "truth": None}
        for i in range(PROMPTS + 2)
    ]
    (tmp_path / identity / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = Outline(page(collect(tmp_path))).text
    assert said.count("and 7 more characters") == PROMPTS and "2 further prompts" in said
    assert "x" * LONGEST in said and "x" * (LONGEST + 1) not in said


def test_a_page_before_anything_is_finished(demo: Path) -> None:
    results = replace(collect(demo), rows=(), level=None, tie=None, missing=(Missing("y", ("a=1",), "failed", "why"),))
    said = Outline(page(results)).text
    assert "why" in said and "1 run not finished" in said and "Provenance" not in said
    illegal = Missing("z", (), "left out", "it needs more")
    assert (
        "1 run not finished, 2 compositions left out"
        in Outline(page(replace(results, missing=(*results.missing, illegal, illegal)))).text
    )


def test_the_answer_cards_mark_the_best_and_the_side(demo: Path) -> None:
    text = page(collect(demo))
    groups = text.split('class="answers"')[1:]
    assert len(groups) == 24
    for group in groups:
        assert group.count('class="answer best"') == 1
        rewards = [
            float(r.replace("\u2212", "-"))
            for r in re.findall(r"<span[^>]*>([+\u2212]\d\.\d\d)</span></header>", group)
        ]
        assert len(rewards) == 8
        top = re.search(r'class="answer best"><header>.*?([+\u2212]\d\.\d\d)</span></header>', group)
        assert top and float(top[1].replace("\u2212", "-")) == max(rewards)


def test_pictures_draw_every_row_with_its_interval(demo: Path) -> None:
    results = collect(demo)
    svg = picture(results, "svg")
    names = [node.text for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {row.name for row in results.rows} <= set(names) and "own reward: mean \u2191" in names
    assert svg == picture(results, "svg")
    assert picture(results, "png").startswith(b"\x89PNG")
    assert len(list(inline(results))) == len(panels(results)) == 9


def test_points_stand_where_the_numbers_are(demo: Path) -> None:
    from personalign.reporting.figure import _panel

    results = collect(demo)
    column = panels(results)[0]
    with drawing((4, 3), 1, 1) as (_, (ax,)):
        _panel(ax, results, column, named=True)
        base, *drawn = [line.get_xydata().tolist() for line in ax.lines]
    assert base[0][0] == base[1][0] == results.rows[0].metrics["reward"].value
    for place, row in enumerate(results.rows):
        figure = row.metrics["reward"]
        assert drawn[2 * place] == [[figure.low, place], [figure.high, place]]
        assert drawn[2 * place + 1] == [[figure.value, place]]


def test_the_front_is_what_nobody_beats_at_its_price(demo: Path) -> None:
    """Against every pair of rows: on the front are those that no other row beats or equals in both."""
    rows = priced(collect(demo))
    price = {row.name: (row.metrics["forward_tokens_per_token"].value, row.metrics["reward"].value) for row in rows}
    beaten = {
        name
        for name, (cost, reward) in price.items()
        for other, (cheaper, better) in price.items()
        if other != name and cheaper <= cost and better >= reward
    }
    front = [row.name for row in unbeaten(rows)]
    assert set(front) == price.keys() - beaten and beaten and len(front) > 1
    assert [price[name] for name in front] == sorted(price[name] for name in front)


def test_the_front_names_its_rows_and_joins_them(demo: Path) -> None:
    results = collect(demo)
    front = unbeaten(priced(results))
    with drawing((4, 3), 1, 1) as (_, (ax,)):
        _draw(ax, results)
        assert [text.get_text() for text in ax.texts] == [row.name for row in front]
        joined = ax.lines[-1].get_xydata().tolist()
    assert joined == [[row.metrics[COST].value, row.metrics["reward"].value] for row in front]


def test_report_writes_what_is_asked(tmp_path: Path, fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fakes("write_sweep")(tmp_path, ["base", "PAD scalar"])
    assert report(folder, ["csv"]) == [folder / "report.csv"]
    assert {path.suffix for path in report(folder, ["md"])} == {".md", ".png"}
    assert "report.png" in (folder / "report.md").read_text()
    files = report(folder, FORMATS)
    assert [path.name for path in files] == [*(f"report.{one}" for one in FORMATS if one != "front"), "front.png"]
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    print_table(folder, files)
    said = capsys.readouterr().out
    assert all(str(path) in said for path in files) and "PAD scalar" in said


def test_report_of_one_run_and_of_nothing_finished(tmp_path: Path, fakes: Fakes) -> None:
    identity = fakes("write_run")(tmp_path / "runs", "base")
    assert len(report(tmp_path / "runs" / identity, ["md", "html", "csv"])) == 4
    waiting = fakes("write_cells")(tmp_path, [fakes("cell")("base", "cccc", "pending")])
    assert [path.suffix for path in report(waiting, FORMATS)] == [".md", ".csv", ".html"]


def test_report_mistakes_are_plain(tmp_path: Path, fakes: Fakes) -> None:
    folder = fakes("write_sweep")(tmp_path, ["base"])
    with pytest.raises(UserError, match="no report format 'pdf'; there are md, csv, html"):
        report(folder, ["pdf"])
    (folder / "report.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.csv"):
        report(folder, ["csv"])


def test_a_curve_by_round_is_shown_over_seeds(tmp_path: Path, fakes: Fakes) -> None:
    """In Markdown and on the page; two seeds are averaged point by point."""
    for seed in (0, 1):
        identity = fakes("write_run")(tmp_path / "runs", "PAD scalar", seed=seed, cost={"seconds": {}})
        path = tmp_path / "runs" / identity / "record.json"
        record = json.loads(path.read_text())
        reward = {"low": -0.5, "high": 3.0, "n": 8, "users": 4, "better": "higher"}
        points = [{"reward": {**reward, "value": n + 0.5 * seed}} for n in range(3)]
        points[2]["stance_error"] = {**reward, "value": 0.125, "better": "lower"}
        record["rounds"] = [{"round": n, "events": 4.0 * n, "metrics": one} for n, one in enumerate(points)]
        path.write_text(json.dumps(record))
    results = collect(tmp_path / "runs")
    header, lines = by_round(results.rows)
    assert header == ["row", "round", "events of a user", "own reward: mean", "stance error"]
    assert [line[:3] for line in lines] == [["PAD scalar", str(n), str(4 * n)] for n in range(3)]
    assert [line[3].split()[0] for line in lines] == ["0.25", "1.25", "2.25"]
    assert [line[4].split()[0] for line in lines] == ["\u2013", "\u2013", "0.12"]
    said = Outline(page(results)).text
    assert "By round" in said and lines[2][3].replace("-", "\u2212") in said
    assert f"| PAD scalar | 1 | 4 | {escaped(lines[1][3])} |" in markdown(results, "report.png")
    assert "By round" not in page(replace(results, rows=tuple(replace(row, curve=()) for row in results.rows)))
