"""The report as one self-contained page: no script, nothing fetched, and every text from outside escaped."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from personalign.reporting.answers import answers
from personalign.reporting.collect import Results
from personalign.reporting.curve import TITLE, by_round
from personalign.reporting.figure import caption, inline
from personalign.reporting.front import front_inline, priced
from personalign.reporting.markup import element, minus, safe, section, text_table
from personalign.reporting.records import Published
from personalign.reporting.rows import Row
from personalign.reporting.table import Column, beside, best, columns, interval, marks, notes, value


def page(results: Results) -> str:
    """The whole page as HTML 5."""
    style = files("personalign.reporting").joinpath("page.css").read_text(encoding="utf-8")
    body = [
        element("h1", safe(results.title)),
        element("p", safe(_subtitle(results)), class_="sub"),
        section("Results", _table(results, columns(results, "main")), _notes(results), _more(results)),
        section("Intervals", _figure(results)),
        section(TITLE, _rounds(results)),
        *(section(one["title"], _published(results, one)) for one in results.published),
        section("Not in the tables", _missing(results)),
        section("Answers", answers(results)),
        section("Provenance", _provenance(results)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(results.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _subtitle(results: Results) -> str:
    samples = [sample for row in results.rows for run in row.runs for sample in run.answers]
    users, requests = {s["user"] for s in samples}, {s["request"] for s in samples}
    seeds = {seed for row in results.rows for seed in row.seeds}
    left_out = sum(one.status == "left out" for one in results.missing)
    counts = [
        (len(results.rows), "row"),
        (len(users), "user"),
        (len(requests), "held-out request"),
        (len(seeds), "seed"),
        (len(results.missing) - left_out, "run not finished"),
        (left_out, "composition left out"),
    ]
    told = [f"{n} {what if n == 1 else _plural(what)}" for n, what in counts if n]
    return ", ".join(told)


def _plural(what: str) -> str:
    first, *rest = what.split(" ")
    return f"{first}s {' '.join(rest)}" if rest and first in ("run", "composition") else f"{what}s"


def _more(results: Results) -> str:
    shown = columns(results, "more")
    return element("details", "<summary>More figures</summary>" + _table(results, shown)) if shown else ""


def _table(results: Results, shown: Sequence[Column]) -> str:
    if not shown:
        return ""
    groups = [(name, len(list(some))) for name, some in itertools.groupby(shown, lambda column: column.group)]
    over = "".join(element("th", element("span", safe(name)), class_="group", colspan=str(n)) for name, n in groups)
    under = "".join(element("th", safe(column.title)) for column in shown)
    head = f"<thead><tr><th></th>{over}</tr><tr><th></th>{under}</tr></thead>"
    top = {column.metric: best(results, column) for column in shown}
    lines = []
    for row in results.rows:
        cells = "".join(_cell(row, column, row.name in top[column.metric]) for column in shown)
        flags = "".join(f" {element('span', safe(mark), class_='flag')}" for mark in marks(row))
        name = element("th", safe(row.name) + flags, scope="row")
        lines.append(element("tr", name + cells, class_="base" if row.name == results.baseline else ""))
    table = element("table", head + element("tbody", "\n".join(lines)), class_="results")
    return element("div", table, class_="scroll")


def _cell(row: Row, column: Column, bold: bool) -> str:
    figure = row.metrics.get(column.metric)
    shown = minus(value(row, column))
    around = element("small", minus(interval(row, column))) if figure else ""
    told = f"n = {figure.n}, {figure.users} users" if figure else ""
    side = ""
    if figure and column.signed:
        side = "up" if figure.low > 0 else "down" if figure.high < 0 else ""
    return element("td", (element("b", shown) if bold else shown) + around, class_=side, title=told)


def _notes(results: Results) -> str:
    lines = "".join(element("li", safe(line)) for line in notes(results)) if results.rows else ""
    return element("ul", lines, class_="notes") if lines else ""


def _figure(results: Results) -> str:
    drawn = "\n".join([*inline(results), *([front_inline(results)] if len(priced(results)) > 1 else [])])
    told = element("figcaption", safe(caption(results)))
    return element("figure", element("div", drawn, class_="panels") + told) if drawn else ""


def _rounds(results: Results) -> str:
    header, rows = by_round(results.rows)
    lines = [[name, *(cell.replace("-", "\u2212") for cell in cells)] for name, *cells in rows]
    return text_table(header, lines) if lines else ""


def _published(results: Results, published: Published) -> str:
    header, rows = beside(results, published)
    said = f"Source: {published['source']}. {published.get('note') or ''}"
    rows = [[*row[:2], *(cell.replace("-", "\u2212") for cell in row[2:])] for row in rows]
    return text_table(header, rows) + element("p", safe(said.strip()), class_="sub")


def _missing(results: Results) -> str:
    rows = [[one.row, " ".join(one.overrides), one.status, one.error or ""] for one in results.missing]
    return text_table(["row", "overrides", "status", "error"], rows) if rows else ""


def _provenance(results: Results) -> str:
    runs = [(row, run) for row in results.rows for run in row.runs]
    if not runs:
        return ""
    facts: dict[str, dict[str, None]] = {}
    for _, run in runs:
        for key, told in _flat({**run.record["provenance"], "data": run.record.get("data_hash")}):
            facts.setdefault(key, {})[told] = None
    lines = "<br>".join(safe(_fact(key, list(told))) for key, told in facts.items())
    common = element("p", element("code", lines), class_="facts")
    costs = list(dict.fromkeys(key for _, run in runs for key in dict(_flat(run.record["cost"]))))
    rows = []
    for row, run in runs:
        cost = dict(_flat(run.record["cost"]))
        named = [row.name, str(run.seed), run.record["identity"], " ".join(run.overrides)]
        rows.append([*named, *(cost.get(key, "") for key in costs)])
    table = text_table(["row", "seed", "run", "overrides", *(key.replace("_", " ") for key in costs)], rows)
    return table + common


def _flat(tree: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """The leaves of nested mappings as (dotted name, text)."""
    leaves = []
    for key, told in tree.items():
        if isinstance(told, Mapping):
            leaves += _flat(told, f"{above}{key}.")
        elif told not in (None, [], ""):
            leaves.append((f"{above}{key}", told if isinstance(told, str) else json.dumps(told)))
    return leaves


def _fact(key: str, told: Sequence[str]) -> str:
    """One line of provenance; runs that disagree are told apart, up to four of them."""
    shown = [*told[:4], *(["\u2026"] if len(told) > 4 else [])]
    return f"{key}: {' | '.join(shown)}"
