"""The table as Markdown, as CSV and in the terminal."""

from __future__ import annotations

import csv
import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from personalign.reporting.collect import Missing, Results, collect
from personalign.reporting.plain import comma_separated, markdown
from personalign.reporting.records import Published, PublishedRow
from personalign.reporting.table import KNOWN, beside, best, columns, notes, number, value
from personalign.reporting.terminal import show
from personalign.results import Figure

Fakes = Callable[[str], Any]
BY_NAME = {column.metric: column for column in KNOWN}


def shown(results: Results, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    show(results, [Path("a/report.html")], console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def changed(results: Results, name: str, **values: float) -> Results:
    """The results with other values in one row; None takes a figure away."""
    rows = []
    for row in results.rows:
        metrics = dict(row.metrics)
        for key, one in values.items() if row.name == name else ():
            metrics[key] = replace(metrics[key], value=one)
        rows.append(replace(row, metrics=metrics))
    return replace(results, rows=tuple(rows))


@pytest.mark.parametrize(
    ("one", "metric", "expected"),
    [
        (0.125, "alignment_accuracy", "0.12"),
        (-0.004, "reward", "0.00"),
        (0.004, "reward_difference", "0.00"),
        (0.3, "reward_difference", "+0.30"),
        (-1.5, "reward_difference", "-1.50"),
        (411.6, "tokens_per_second", "412"),
        (math.nan, "reward", "\u2013"),
    ],
)
def test_numbers(one: float, metric: str, expected: str) -> None:
    assert number(one, BY_NAME[metric]) == expected


def test_best_follows_the_side_and_shares_ties(demo: Path) -> None:
    results = collect(demo)
    assert best(results, BY_NAME["reward"]) == {"PAD K features"}
    assert best(results, BY_NAME["forward_tokens_per_token"]) >= {"base", "conditioned DPO"}
    top = next(row.metrics["reward"].value for row in results.rows if row.name == "PAD K features")
    tied = changed(results, "PAD scalar", reward=top + 1e-5)
    assert best(tied, BY_NAME["reward"]) == {"PAD K features", "PAD scalar"}
    assert best(changed(results, "PAD K features", reward=math.nan), BY_NAME["reward"]) == {"conditioned DPO"}
    assert not best(results, BY_NAME["words"])
    assert not best(replace(results, rows=results.rows[:1]), BY_NAME["reward"])


def test_oracle_rows_are_marked_and_do_not_compete(tmp_path: Path, fakes: Fakes) -> None:
    fakes("write_run")(tmp_path, "base")
    fakes("write_run")(tmp_path, "pooled DPO")
    fakes("write_run")(tmp_path, "PAD K features", flags=["oracle"])
    results = collect(tmp_path, baseline="base")
    assert best(results, BY_NAME["reward"]) <= {"base", "pooled DPO"}
    assert "PAD K features *oracle*" in markdown(results, "f.png")
    assert "PAD K features (oracle)" in shown(results, 120)
    assert any("guided by the true reward" in line for line in notes(results))


def test_columns_are_those_that_some_row_has(demo: Path) -> None:
    results = collect(demo)
    names = [column.metric for column in columns(results)]
    assert names[:4] == ["reward", "reward_at_length", "reward_difference", "win_tie_lose"]
    assert names[4:7] == ["reward.warmth", "reward.formality", "reward.concreteness"]
    rows = tuple(
        replace(row, metrics={k: v for k, v in row.metrics.items() if k != "perplexity"}) for row in results.rows
    )
    bare = {**results.rows[0].metrics}
    bare["reward.warmth"] = replace(bare["reward.warmth"], better="none")
    mixed = replace(results, rows=(replace(results.rows[0], metrics=bare), *results.rows[1:]))
    assert [column.metric for column in columns(mixed, "main")][4:6] == ["reward.formality", "reward.concreteness"]
    assert columns(mixed, "more")[0].metric == "reward.warmth"
    assert "perplexity" not in [column.metric for column in columns(replace(results, rows=rows))]
    own = {**results.rows[0].metrics, "judge_win_rate": Figure(value=1, low=0, high=1, n=3, users=1)}
    more = replace(results, rows=(replace(results.rows[0], metrics=own), *results.rows[1:]))
    assert columns(more, "more")[-1].title == "judge win rate"
    assert value(more.rows[1], columns(more)[-1]) == "\u2013"


def test_notes_state_items_users_intervals_and_remarks(demo: Path) -> None:
    said = " ".join(notes(collect(demo)))
    for part in (
        "95% bootstrap interval by user",
        "24 items of 8 users; ",
        "alignment accuracy: 72 items of 8 users",
        "Baseline: base; a difference in reward of at most 0.05 is a tie",
        "what it adds to the reward of the users who care for it",
        "pooled DPO: one adapter",
    ):
        assert part in said


def cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_markdown_has_one_cell_a_column_whatever_names_hold(demo: Path) -> None:
    results = collect(demo)
    rows = (replace(results.rows[0], name="a | b *c* <d>\n[e](f)"), *results.rows[1:])
    text = markdown(replace(results, rows=rows), "f.png")
    table = [line for line in text.split("\n\n")[1].splitlines() if line]
    assert len(table) == 2 + 8
    assert {len(cells(line)) for line in table} == {1 + len(columns(results, "main"))}
    assert r"a \| b \*c\* \<d\> \[e\](f)" in table[2]
    row = results.rows[5]
    wanted = f"**{row.metrics['reward'].value:.2f}** [{row.metrics['reward'].low:.2f}"
    assert wanted in next(line for line in table if line.startswith("| PAD K features"))


def test_csv_has_every_figure_in_full(demo: Path) -> None:
    results = collect(demo)
    missing = (Missing("broken", (), "failed", 'Error: "quoted", and\nmore'),)
    lines = list(csv.DictReader(io.StringIO(comma_separated(replace(results, missing=missing)))))
    assert len(lines) == 9
    for row, line in zip(results.rows, lines, strict=False):
        assert (line["row"], line["status"], line["seeds"]) == (row.name, "done", "0")
        for name, figure in row.metrics.items():
            assert float(line[name]) == figure.value and float(line[f"{name}.high"]) == figure.high
            assert (int(line[f"{name}.n"]), int(line[f"{name}.users"])) == (figure.n, figure.users)
        if row.against:
            assert int(line["win"]) == row.against.win
    assert lines[0]["reward_difference"] == ""
    assert (lines[8]["row"], lines[8]["error"]) == ("broken", 'Error: "quoted", and\nmore')


@pytest.mark.parametrize(("width", "has", "lacks"), [(120, "Fwd", "Words"), (100, "PPL", "Fwd"), (60, "Own", "PPL")])
def test_the_terminal_table_fits_and_keeps_what_matters_most(demo: Path, width: int, has: str, lacks: str) -> None:
    results = collect(demo)
    text = shown(results, width)
    assert has in text and lacks not in text and "\u2026" not in text
    assert max(map(len, text.splitlines())) <= width
    assert all(row.name in text for row in results.rows)
    assert text.endswith("a/report.html\n")


def test_the_terminal_tells_what_is_missing_and_takes_names_literally(demo: Path) -> None:
    results = collect(demo)
    missing = (
        Missing("[red]x[/red]", (), "failed", "ValueError: [bold]no\nTraceback"),
        Missing("y", (), "pending", None),
    )
    text = shown(replace(results, title="[b]t", missing=missing), 100)
    assert "[red]x[/red]: failed: ValueError: [bold]no\n" in text and "y: pending\n" in text
    assert text.startswith("[b]t") and "Traceback" not in text


def test_nothing_finished_yet(demo: Path) -> None:
    results = replace(collect(demo), rows=(), level=None, tie=None, missing=(Missing("y", (), "pending", None),))
    assert "y: pending" in shown(results, 100)
    assert "| y | pending |" in markdown(results, "f.png")
    assert comma_separated(results).splitlines()[1].startswith("y,")


def test_published_numbers_stand_beside_ours(demo: Path) -> None:
    results = collect(demo)
    header, rows = beside(results, results.published[0])
    expected = ["published row", "row here", "Overall RM", "own reward: mean (here)", "Overall GPT-4 win %"]
    assert header == [*expected, "Diversity", "diversity (here)"]
    mine = results.rows[7].metrics["reward"]
    ours = f"{mine.value:.2f} [{mine.low:.2f}, {mine.high:.2f}]"
    assert rows[3][:5] == ["PAD (1d)", "PAD released", "1.28", ours, "84"]
    assert rows[2] == ["MORLHF", "\u2013", "0.68", "\u2013", "33", "\u2013", "\u2013"]
    assert "Source: arXiv 2410.04070 v7" in markdown(results, "f.png")


def test_a_published_row_of_one_user_stands_beside_what_that_user_was_given(demo: Path) -> None:
    results = collect(demo)
    row = next(row for row in results.rows if row.against)
    users = {answer["user"]: 0 for answer in row.runs[0].answers}
    rows: list[PublishedRow] = [
        {"name": u, "ours": row.name, "user": u, "values": {"win": 3}} for u in [*users, "nobody"]
    ]
    theirs: dict[str, str | None] = {"win": "win_tie_lose", "reward": "reward"}
    published: Published = {"title": "t", "source": "s", "columns": theirs, "rows": rows}
    found = beside(results, published)[1]
    counts = [tuple(map(int, cells[3].split(" / "))) for cells in found[:-1]]
    assert all(sum(one) == 3 for one in counts), "three answers of each"
    assert tuple(map(sum, zip(*counts, strict=True))) == (row.against.win, row.against.tie, row.against.lose)
    assert {cells[5] for cells in found} == {found[-1][3]} == {"\u2013"}
    assert [cells[1] for cells in found] == [f"{row.name}, {user}" for user in [*users, "nobody"]]


def test_tables_need_neither_torch_nor_matplotlib(demo: Path) -> None:
    code = (
        "import sys; from personalign.reporting.report import report, print_table; "
        "print_table(sys.argv[1]); import personalign.reporting.html; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(demo)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PAD K features" in done.stdout
