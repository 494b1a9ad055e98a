"""The interval plot: one panel a metric, one line a row, each a point with its bootstrap interval.

In the page, every panel is an SVG of its own, so that it wraps on narrow screens; as a file, all are one picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from personalign.reporting.collect import Results
from personalign.reporting.drawing import COLOURS, drawing, embedded, saved, short
from personalign.reporting.markup import fit
from personalign.reporting.table import Column, columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    "reward",
    "reward_difference",
    "reward_at_length",
    "alignment_accuracy",
    "choice_accuracy",
    "label_accuracy",
    "label_mae",
    "label_rmse",
    "rougeL",
    "diversity",
    "repetition",
    "perplexity",
    "violation_rate",
    "personalization_tax",
    "stance_error",
    "tokens_per_second",
    "forward_tokens_per_token",
)
ACROSS = 3
LINE = 0.26  # inches a row


def panels(results: Results) -> list[Column]:
    """The metrics that are drawn: of the panels above, those that a row has, unless all rows are the same."""
    chosen = [column for column in columns(results) if column.metric in PANELS and _differs(results, column)]
    return sorted(chosen, key=lambda column: PANELS.index(column.metric))


def _differs(results: Results, column: Column) -> bool:
    found = [row.metrics[column.metric] for row in results.rows if column.metric in row.metrics]
    return len(found) == 1 or len({(figure.value, figure.low, figure.high) for figure in found}) > 1


def picture(results: Results, kind: Literal["svg", "png"]) -> bytes:
    """All panels as one picture, an SVG or a PNG of 200 dpi. Deterministic."""
    chosen = panels(results)
    down = -(-len(chosen) // ACROSS) or 1
    with drawing((4.2 * ACROSS, down * _height(results)), down, min(ACROSS, len(chosen)) or 1) as (figure, axes):
        for place, (ax, column) in enumerate(zip(axes, chosen, strict=False)):
            _panel(ax, results, column, named=place % ACROSS == 0)
        for ax in axes[len(chosen) :]:
            ax.set_axis_off()
        figure.supxlabel(fit(caption(results)), fontsize=9, color=COLOURS["muted"])
        return saved(figure, kind)


def inline(results: Results) -> Iterator[str]:
    """Each panel as an SVG element for a page, in the page's own colours and font."""
    for number, column in enumerate(panels(results)):
        with drawing((4.2, _height(results)), 1, 1) as (figure, (ax,)):
            _panel(ax, results, column, named=True)
            yield embedded(saved(figure, "svg").decode(), f"p{number}", column.full)


def caption(results: Results) -> str:
    """What points, bars and lines are."""
    bars = f"bars: {results.level:.0%} bootstrap intervals by user" if results.level else "bars: their intervals"
    base = f"; broken line: {results.baseline}" if results.row(results.baseline) else ""
    hollow = "; hollow: guided by the true reward" if any("oracle" in row.flags for row in results.rows) else ""
    return f"Points: means over users; {bars}{base}{hollow}."


def _height(results: Results) -> float:
    return 0.75 + LINE * max(1, len(results.rows))


def _panel(ax: Axes, results: Results, column: Column, named: bool) -> None:
    """One metric: rows from top to bottom, the baseline's value (or no difference) as a broken line."""
    base = results.row(results.baseline)
    reference = base.metrics.get(column.metric) if base else None
    if column.metric == "reward_difference" or reference:
        at = reference.value if reference else 0.0
        ax.axvline(at, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for place, row in enumerate(results.rows):
        figure = row.metrics.get(column.metric)
        if figure is None:
            continue
        colour = COLOURS["muted"] if row is base else COLOURS["accent"]
        ax.plot([figure.low, figure.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
        hollow = "oracle" in row.flags
        ax.plot(figure.value, place, "o", color=colour, markersize=6, fillstyle="none" if hollow else "full", zorder=3)
    _dress(ax, results, f"{column.full} {_arrow(results, column)}".strip(), named)


def _dress(ax: Axes, results: Results, title: str, named: bool) -> None:
    ax.set_title(fit(title), loc="left", fontsize=10, color=COLOURS["ink"])
    names = [short(row.name) + (" (oracle)" if "oracle" in row.flags else "") for row in results.rows]
    ax.set_yticks(range(len(names)), names if named else [""] * len(names), color=COLOURS["ink"])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.locator_params(axis="x", nbins=5)
    ax.margins(x=0.06)
    ax.tick_params(length=0, labelcolor=COLOURS["ink"])
    ax.grid(axis="x", color=COLOURS["line"], linewidth=0.6)
    ax.set_axisbelow(True)
    ax.patch.set_visible(False)
    for side in ax.spines.values():
        side.set_visible(False)


def _arrow(results: Results, column: Column) -> str:
    sides = {row.metrics[column.metric].better for row in results.rows if column.metric in row.metrics}
    return {"higher": "\u2191", "lower": "\u2193", "none": ""}[sides.pop()] if len(sides) == 1 else ""
