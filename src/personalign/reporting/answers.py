"""Sample answers for the page: per user, per prompt, the answers of all rows side by side with their reward."""

from __future__ import annotations

from collections.abc import Mapping

from personalign.reporting.collect import Results
from personalign.reporting.markup import element, minus, safe
from personalign.reporting.records import Person, Sample
from personalign.reporting.rows import Row
from personalign.reporting.table import marks

PROMPTS = 3  # shown of each user; a page of all would not open on a phone
LONGEST = 3000  # characters of one answer or prompt
Answers = Mapping[str, Mapping[str, Sample]]


def answers(results: Results) -> str:
    """One fold a user, the first one open; empty when there are no answers."""
    said = {row.name: _by_request(row) for row in results.rows}
    requests: dict[str, dict[str, str]] = {}
    for one in (sample for row in said.values() for sample in row.values()):
        requests.setdefault(one["user"], {}).setdefault(one["request"], one["prompt"])
    people: dict[str, Person] = {}
    for row in results.rows:
        people |= row.runs[0].record.get("users", {})
    folds: list[str] = []
    for user, prompts in requests.items():
        parts = [_prompt(results, said, request, text) for request, text in list(prompts.items())[:PROMPTS]]
        if len(prompts) > PROMPTS:
            parts.append(element("p", f"{len(prompts) - PROMPTS} further prompts in answers.jsonl.", class_="sub"))
        opened = "" if folds else " open"
        folds.append(f"<details{opened}>{_summary(user, people.get(user, {}))}{''.join(parts)}</details>")
    return "\n".join(folds)


def _by_request(row: Row) -> dict[str, Sample]:
    """The answers under the first seed."""
    return {sample["request"]: sample for sample in row.runs[0].answers}


def _summary(user: str, person: Person) -> str:
    stance = person.get("stance", {})
    chips = "".join(
        element("span", f"{safe(name)} {minus(f'{value:+.2g}')}", class_="chip") for name, value in stance.items()
    )
    statement = person.get("statement", "")
    said = element("span", f"\u201c{safe(statement)}\u201d", class_="said") if statement else ""
    return element("summary", f"<b>{safe(user)}</b> {chips} {said}")


def _prompt(results: Results, said: Answers, request: str, prompt: str) -> str:
    here = {name: row[request] for name, row in said.items() if request in row}
    rewards = {name: truth["total"] for name, sample in here.items() if (truth := sample["truth"])}
    top = max(rewards.values(), default=0.0)
    cards = [
        _card(row, here[row.name], _side(results, rewards, row.name), rewards.get(row.name) == top)
        for row in results.rows
        if row.name in here
    ]
    return element("div", _clipped(prompt), class_="prompt", dir="auto") + element(
        "div", "".join(cards), class_="answers"
    )


def _side(results: Results, rewards: Mapping[str, float], name: str) -> str:
    """up or down: better or worse than the baseline's answer by more than a tie."""
    base = rewards.get(results.baseline or "")
    if base is None or results.tie is None or name not in rewards:
        return ""
    difference = rewards[name] - base
    return "up" if difference > results.tie else "down" if difference < -results.tie else ""


def _card(row: Row, sample: Sample, side: str, best: bool) -> str:
    truth = sample["truth"]
    flags = "".join(f" {element('span', safe(mark), class_='flag')}" for mark in marks(row))
    reward = element("span", minus(f"{truth['total']:+.2f}"), class_=side) if truth else ""
    head = element("header", element("span", safe(row.name) + flags) + reward)
    text = _clipped(sample["text"]) or element("em", "no text")
    ratings = _ratings(truth["dimensions"]) if truth else ""
    content = head + element("p", text, dir="auto") + element("small", ratings)
    return element("article", content, class_="answer best" if best else "answer")


def _ratings(dimensions: Mapping[str, float]) -> str:
    return ", ".join(f"{safe(name)}&nbsp;{minus(f'{value:+.2f}')}" for name, value in dimensions.items())


def _clipped(text: str) -> str:
    rest = len(text) - LONGEST
    return safe(text[:LONGEST]) + (element("em", f" \u2026 and {rest} more characters") if rest > 0 else "")
