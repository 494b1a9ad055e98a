"""The table at the end of a sweep: what fits the terminal; the report's files have the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from personalign.reporting.collect import Results
from personalign.reporting.markup import fit
from personalign.reporting.rows import Row
from personalign.reporting.table import Column, best, columns, interval, marks, notes, value

# Columns that carry their interval in the terminal; the others show the value alone.
WIDE = ("reward", "reward_difference")
# What is given up first when the terminal is narrow, from the end of the list.
PRIORITY = (
    "reward",
    "reward_difference",
    "win_tie_lose",
    "alignment_accuracy",
    "choice_accuracy",
    "label_accuracy",
    "label_mae",
    "label_rmse",
    "rougeL",
    "perplexity",
    "violation_rate",
    "personalization_tax",
    "stance_error",
    "reward_at_length",
    "diversity",
    "repetition",
    "tokens_per_second",
    "forward_tokens_per_token",
)


def show(results: Results, files: Sequence[Path], console: Console) -> None:
    """Print the table with as many columns as fit, its notes, what is missing, and where the files are."""
    chosen = [column for column in columns(results, "main") if column.metric in PRIORITY]
    unlimited = console.options.update(max_width=10_000)
    while len(chosen) > 1 and Measurement.get(console, unlimited, _table(results, chosen)).maximum > console.width:
        chosen.remove(max(chosen, key=lambda column: PRIORITY.index(column.metric)))
    if results.rows:
        console.print(_table(results, chosen))
        for line in notes(results):
            console.print(Text(fit(line), style="dim"))
    for one in results.missing:
        error = f": {one.error.splitlines()[0]}" if one.error else ""
        console.print(Text(fit(f"{one.row}: {one.status}{error}"), style="red" if one.error else "yellow"))
    for path in files:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _table(results: Results, shown: Sequence[Column]) -> Table:
    table = Table(
        title=escape(fit(results.title)),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("")
    for column in shown:
        table.add_column(column.short, justify="right", no_wrap=True)
    top = {column.metric: best(results, column) for column in shown}
    for row in results.rows:
        name = f"{row.name} ({', '.join(marks(row))})" if marks(row) else row.name
        table.add_row(Text(fit(name)), *(_cell(row, column, row.name in top[column.metric]) for column in shown))
    return table


def _cell(row: Row, column: Column, bold: bool) -> Text:
    cell = Text(value(row, column).replace(" / ", "/"), style="bold" if bold else "")
    if column.metric in WIDE:
        cell.append(f" {interval(row, column)}", style="dim not bold")
    return cell
