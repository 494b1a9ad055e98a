"""The survey's tree: its nodes, and that every part has its place in it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from personalign.commands.taxonomy import BESIDE, FIGURE, nodes, places, show
from personalign.composition.parts import PartView, catalogue

PARTS = catalogue()
NAMES = [node for text in (FIGURE, BESIDE) for node, _ in nodes(text)]
# What parts are made of the survey's nodes; devices, loggers and models are none of its matter.
PLACED = ("data", "memory", "generation", "reward", "alignment", "boundary", "feedback", "query", "evaluation")


def lone(node: str) -> PartView:
    return PartView(group="memory", choice="mine", head="", defaults={}, node=node)


def test_an_indented_tree_by_hand() -> None:
    text = "a\n  b\n    c\n    d\n  e\nf\n"
    found = [("a", False), ("a / b", False), ("a / b / c", True), ("a / b / d", True), ("a / e", True), ("f", True)]
    assert list(nodes(text)) == found


def test_the_tree_is_one_and_its_leaves_have_nothing_below() -> None:
    assert len(NAMES) == len(set(NAMES))
    for text in (FIGURE, BESIDE):
        for node, leaf in nodes(text):
            assert leaf != any(other.startswith(f"{node} / ") for other in NAMES)
            assert node.rpartition(" / ")[0] in {"", *NAMES}


def test_the_branches_of_figure_4_stand_in_its_order() -> None:
    """Sections 4.1 to 4.3 of the survey, and the sub-types of 4.3."""
    top = [node for node, _ in nodes(FIGURE) if " / " not in node]
    assert top == [
        "preference memory",
        "personalized generation",
        "personalized rewarding",
        "alignment through feedback",
    ]
    for branch in top[1:3]:
        below = [node.split(" / ")[1] for node in NAMES if node.startswith(branch) and node.count(" / ") == 1]
        assert below == ["prompting", "encoding", "parameter", "agent"]
    feedback = [node.split(" / ")[1:] for node, leaf in nodes(FIGURE) if leaf and node.startswith(top[3])]
    assert [kind for kind, _ in feedback] == ["training-time"] * 4 + ["inference-time"] * 3 + ["multi-objective"] * 3


@pytest.mark.parametrize("part", [p for p in PARTS if p.target], ids=lambda p: f"{p.group}/{p.choice}")
def test_every_part_is_at_a_node_of_the_tree(part: PartView) -> None:
    assert part.node in NAMES if part.group in PLACED else part.node == ""


def test_each_part_is_listed_once_at_its_node() -> None:
    found = places(PARTS)
    assert [place.node for place in found] == NAMES, "nothing that ships lies outside"
    listed = [(place.node, name) for place in found for name in place.members]
    expected = [(part.node, f"{part.group}={part.choice}") for part in PARTS if part.node]
    assert sorted(listed) == sorted(expected) and len(listed) > 20


def test_a_leaf_without_a_part_says_none_and_an_unknown_node_comes_last(capsys: pytest.CaptureFixture[str]) -> None:
    parts = [lone("preference memory / implicit"), lone("elsewhere / [odd]")]
    show(parts, False)
    lines = [line.lstrip("├└│─ ").rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:7] == [
        "preference memory",
        "explicit: none",
        "implicit: memory=mine",
        "user-generated content: none",
        "demographic attributes: none",
        "behavioural signals: none",
    ]
    assert lines[-1] == "elsewhere / [odd]: memory=mine"
    assert len(lines) == 1 + len(NAMES) + 1


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    show([replace(lone("evaluation"), group="evaluation")], True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["node"] for row in rows] == NAMES
    assert [row for row in rows if row["members"]] == [{"node": "evaluation", "members": ["evaluation=mine"]}]
