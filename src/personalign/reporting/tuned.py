"""What a report says of a row whose strength was chosen on the validation split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from personalign.reporting.rows import Row

BY = {"truth": "true reward", "guide": "the guide's reward"}


def tuned(row: Row) -> Iterator[str]:
    """Which strength was taken, and what each came to on how many validation answers: a line for each seed."""
    for run in row.runs:
        if told := run.record.get("tuning"):
            seed = f", seed {run.seed}" if len(row.runs) > 1 else ""
            tried = "; ".join(_came_to(line) for line in told["tried"])
            yield (
                f"{row.name}{seed}: {told['key']} = {told['chosen']:g}, chosen by {BY[told['by']]} on "
                f"{told['tried'][0]['reward']['n']} validation answers{_within(told)}: {tried}."
            )


def _within(told: Mapping[str, Any]) -> str:
    """How fluent answers had to be."""
    if told["base"] is None or told["base"]["perplexity"] is None:
        return ""
    return f" of a perplexity of at most {told['perplexity']:g} x the base's {told['base']['perplexity']:.1f}"


def _came_to(line: Mapping[str, Any]) -> str:
    perplexity = "" if line["perplexity"] is None else f" (perplexity {line['perplexity']:.1f})"
    refused = f", {line['refused']} refused" if line.get("refused") else ""
    return f"{line['strength']:g} gives {line['reward']['value']:.2f}{perplexity}{refused}"
