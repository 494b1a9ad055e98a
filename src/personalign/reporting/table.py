"""The table of a report: which columns, what a cell says, which is best, what must be known to read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from personalign.reporting.collect import Results
from personalign.reporting.records import Published, PublishedRow
from personalign.reporting.rows import Row
from personalign.reporting.tuned import tuned

Place = Literal["main", "more"]
RECORD = "win_tie_lose"
OWN = "Own reward"
PARTS, RATINGS = "Own reward per dimension", "Ratings per dimension"
NONE = "\u2013"


@dataclass(frozen=True)
class Column:
    """A column: the metric's name, its group and title, a short title for terminals, digits after the point.

    `more` columns stand in a second table. `signed` values are differences and carry their sign.
    """

    metric: str
    group: str
    title: str
    short: str
    digits: int
    place: Place = "main"
    signed: bool = False

    @property
    def full(self) -> str:
        """The title where no group stands above it."""
        return f"own reward: {self.title}" if self.group == OWN else self.title


KNOWN = (
    Column("reward", OWN, "mean", "Own reward", 2),
    Column("reward_at_length", OWN, "at controlled length", "@length", 2),
    Column("reward_difference", OWN, "minus baseline", "vs. base", 2, signed=True),
    Column(RECORD, OWN, "win / tie / lose", "W/T/L", 0),
    Column("alignment_accuracy", "Pairs", "alignment accuracy", "Acc.", 2),
    Column("choice_accuracy", "References", "choice accuracy", "Choice", 2),
    Column("label_accuracy", "References", "label accuracy", "Label", 2),
    Column("label_f1", "References", "label F1", "F1", 2),
    Column("label_mae", "References", "label MAE", "MAE", 2),
    Column("label_rmse", "References", "label RMSE", "RMSE", 2),
    Column("rouge1", "References", "ROUGE-1", "R-1", 3),
    Column("rougeL", "References", "ROUGE-L", "R-L", 3),
    Column("bleu", "References", "BLEU", "BLEU", 3),
    Column("diversity", "Text", "diversity", "Div.", 2),
    Column("repetition", "Text", "repetition", "Rep.", 3),
    Column("perplexity", "Text", "perplexity", "PPL", 1),
    Column("violation_rate", "Boundary", "violations", "Viol.", 2),
    Column("personalization_tax", "Boundary", "personalization tax", "Tax", 2),
    Column("stance_error", "Asking", "stance error", "Stance err.", 2),
    Column("regret", "Asking", "regret", "Regret", 2),
    Column("tokens_per_second", "Cost", "tokens/s", "Tok/s", 0),
    Column("forward_tokens_per_token", "Cost", "forward tokens / token", "Fwd", 1),
    Column("reward_worst_tenth", OWN, "worst tenth of users", "Worst", 2, "more"),
    Column("hypervolume", "Pareto", "volume of the users' front", "Front", 2, "more"),
    Column("choice_accuracy_raw", "References", "choice accuracy, whole choice", "Choice raw", 2, "more"),
    Column("words", "Text", "words", "Words", 0, "more"),
    Column("distinct", "Text", "diversity over a user's answers", "Distinct", 2, "more"),
    Column("eos_rate", "Endings", "by end of text", "EOS", 2, "more"),
    Column("refusal_rate", "Endings", "refused", "Refused", 2, "more"),
)


def columns(results: Results, place: Place | None = None) -> list[Column]:
    """The columns that some row has something to say in; ratings per dimension after the user's own reward."""
    names = list(dict.fromkeys(name for row in results.rows for name in row.metrics))
    known = {column.metric for column in KNOWN}
    ratings = [_rating(results, name) for name in names if name.startswith("reward.")]
    others = [_other(name) for name in names if name not in known and not name.startswith("reward.")]
    ordered = [*KNOWN[:4], *ratings, *KNOWN[4:], *others]
    said = {*names, *([RECORD] if any(row.against for row in results.rows) else [])}
    return [column for column in ordered if column.metric in said and place in (None, column.place)]


def _rating(results: Results, name: str) -> Column:
    """A dimension of the users' reward; bare ratings, which have no better side, stand in the second table."""
    title = name.removeprefix("reward.")
    bare = any(row.metrics[name].better == "none" for row in results.rows if name in row.metrics)
    return Column(name, RATINGS if bare else PARTS, title, title, 2, "more" if bare else "main")


def _other(name: str) -> Column:
    title = name.replace("_", " ")
    return Column(name, "Other", title, title, 2, "more")


def number(value: float, column: Column) -> str:
    """A value as it is shown; a dash where there is none."""
    if not math.isfinite(value):
        return NONE
    shown = f"{value:{'+' if column.signed else ''}.{column.digits}f}"
    # A rounded zero has no sign.
    return shown.lstrip("+-") if float(shown) == 0.0 else shown


def value(row: Row, column: Column) -> str:
    """The cell's number, or how many are won / tied / lost; a dash where the row has none."""
    if column.metric == RECORD:
        return f"{row.against.win} / {row.against.tie} / {row.against.lose}" if row.against else NONE
    figure = row.metrics.get(column.metric)
    return number(figure.value, column) if figure else NONE


def interval(row: Row, column: Column) -> str:
    """The cell's interval as [low, high]; empty where the row has none."""
    figure = row.metrics.get(column.metric)
    unsigned = replace(column, signed=False)
    return f"[{number(figure.low, unsigned)}, {number(figure.high, unsigned)}]" if figure else ""


def best(results: Results, column: Column) -> set[str]:
    """The rows whose shown value is best; oracle rows do not compete, nor does a lone row."""
    figures = {
        row.name: row.metrics[column.metric]
        for row in results.rows
        if column.metric in row.metrics and "oracle" not in row.flags
    }
    sides = {figure.better for figure in figures.values()}
    if len(figures) < 2 or sides not in ({"higher"}, {"lower"}):
        return set()
    shown = {name: round(f.value, column.digits) for name, f in figures.items() if math.isfinite(f.value)}
    top = (max if sides == {"higher"} else min)(shown.values(), default=math.nan)
    return {name for name, one in shown.items() if one == top}


def marks(row: Row) -> list[str]:
    """What stands beside the row's name: its flags, and how many seeds it is the mean of."""
    return [*row.flags, *([f"{len(row.runs)} seeds"] if len(row.runs) > 1 else [])]


def notes(results: Results) -> list[str]:
    """What a reader must know to read the numbers: intervals, items, the comparison, seeds, flags, remarks."""
    said = ["Each value is the mean over users of the user's mean."]
    if results.level is not None:
        said.append(f"[low, high]: {results.level:.0%} bootstrap interval by user.")
    said.append(f"Over {counts(results)}.")
    if results.tie is not None and any(row.against for row in results.rows):
        said.append(f"Baseline: {results.baseline}; a difference in reward of at most {results.tie:g} is a tie.")
    if any(column.group == PARTS for column in columns(results)):
        said.append(f"{PARTS}: what it adds to the reward of the users who care for it.")
    if any(len(row.runs) > 1 for row in results.rows):
        said.append("Several seeds: mean over seeds, interval over seeds and users, items of all seeds.")
    if any("oracle" in row.flags for row in results.rows):
        said.append("oracle: this row is guided by the true reward; it is a ceiling and not marked as best.")
    if any(row.curve for row in results.rows):
        said.append("Stance error: 1 - cos of the recalled stance and the true one; 1 where nothing is recalled.")
        said.append("Regret: true reward that memory's favourite lacked among the answers that were asked about.")
    said += [line for row in results.rows for line in tuned(row)]
    return [*said, *(f"{row.name}: {row.note}" for row in results.rows if row.note)]


def counts(results: Results) -> str:
    """Over how many items of how many users: the commonest answer, then the columns that differ."""
    groups: dict[str, list[str]] = {}
    for column in columns(results):
        found = [row.metrics[column.metric] for row in results.rows if column.metric in row.metrics]
        if found:
            sizes = dict.fromkeys(
                f"{figure.n} items of {figure.users} user{'s' * (figure.users != 1)}" for figure in found
            )
            groups.setdefault(" or ".join(sizes), []).append(column.full)
    common, *rest = sorted(groups, key=lambda sizes: -len(groups[sizes])) or ["nothing"]
    return "; ".join([common, *(f"{', '.join(groups[sizes])}: {sizes}" for sizes in rest)])


def beside(results: Results, published: Published) -> tuple[list[str], list[list[str]]]:
    """Published numbers with ours beside them: a header and rows of cells; ours stand under "here"."""
    ours: dict[str | None, Column] = {column.metric: column for column in columns(results)}
    header = ["published row", "row here"]
    for theirs, metric in published["columns"].items():
        header += [theirs, *([f"{ours[metric].full} (here)"] if metric in ours else [])]
    return header, [_beside(results, published, one, ours) for one in published["rows"]]


def _beside(results: Results, published: Published, one: PublishedRow, ours: Mapping[str | None, Column]) -> list[str]:
    row, user = results.row(one.get("ours")), one.get("user")
    cells = [one["name"], ", ".join(name for name in (row.name, user) if name) if row else NONE]
    for theirs, metric in published["columns"].items():
        cells.append(f"{one['values'][theirs]:g}" if theirs in one["values"] else NONE)
        if metric in ours:
            cells.append(_ours(row, ours[metric], user) if row else NONE)
    return cells


def _ours(row: Row, column: Column, user: str | None) -> str:
    """A figure with its interval; of one `user` there is only how many answers win / tie / lose."""
    if user is None:
        return f"{value(row, column)} {interval(row, column)}".strip()
    counts = row.against.by_user.get(user) if row.against and column.metric == RECORD else None
    return " / ".join(map(str, counts)) if counts else NONE
