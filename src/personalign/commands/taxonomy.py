"""The survey's taxonomy as a tree, and what is here of each of its nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.markup import escape
from rich.tree import Tree

from personalign.commands.screen import console
from personalign.composition.parts import PartView

# Figure 4 of arXiv 2503.17003 (v4), in its order, with the finer types that sections 4.1 to 4.3 name under each. The
# figure draws generation and rewarding as one box of four mechanisms, each for both; here each has its own branch.
FIGURE = """
preference memory
  explicit
  implicit
    user-generated content
    demographic attributes
    behavioural signals
  preference inference
personalized generation
  prompting
    implicit injection
    explicit injection
    prompt refinement
    retrieval augmentation
  encoding
    contextual embedding
    latent variable
  parameter
    full parameter
    adapter
  agent
    workflow execution
    workflow customization
personalized rewarding
  prompting
  encoding
  parameter
  agent
alignment through feedback
  training-time
    standard
    parameter-efficient
    agent
    federated
  inference-time
    reward-guided decoding
    prediction ensemble
    output refinement
  multi-objective
    direct objective-space optimization
    preference-guided
    interactive preference learning
"""
# What the same survey says outside the figure: sections 3.2, 5.1 and 5.2.
BESIDE = """
objectives
  universal values
  individual preferences
evaluation
benchmarks
  universal
  personalized
"""
SEPARATOR = " / "


class Place(NamedTuple):
    """A node with the choices that name it as theirs (`memory=bm25`); a `leaf` has no node below."""

    node: str
    leaf: bool
    members: tuple[str, ...]


def nodes(text: str) -> Iterator[tuple[str, bool]]:
    """The full name of every node of an indented tree, in its order, and whether it is a leaf."""
    lines = text.strip().splitlines()
    depths = [(len(line) - len(line.lstrip())) // 2 for line in lines]
    path: list[str] = []
    for line, depth, following in zip(lines, depths, [*depths[1:], 0], strict=True):
        path[depth:] = [line.strip()]
        yield SEPARATOR.join(path), following <= depth


def places(parts: Sequence[PartView]) -> list[Place]:
    """Every node with its members, those of the figure first; a node that the survey does not have comes last."""
    known = [*nodes(FIGURE), *nodes(BESIDE)]
    named = {node for node, _ in known}
    own = dict.fromkeys(part.node for part in parts if part.node and part.node not in named)
    return [Place(node, leaf, _members(parts, node)) for node, leaf in [*known, *((node, True) for node in own)]]


def _members(parts: Sequence[PartView], node: str) -> tuple[str, ...]:
    return tuple(f"{part.group}={part.choice}" for part in parts if part.node == node)


def show(parts: Sequence[PartView], as_json: bool) -> None:
    """Print the tree, or one JSON list of {node, members}."""
    found = places(parts)
    if as_json:
        print(json.dumps([{"node": place.node, "members": place.members} for place in found], indent=2))
        return
    branches: dict[str, Tree] = {
        "": Tree("taxonomy (arXiv 2503.17003, figure 4; below it, what else the survey names)")
    }
    for place in found:
        above, _, name = place.node.rpartition(SEPARATOR)
        if above not in branches:
            above, name = "", place.node
        branches[place.node] = branches[above].add(_line(name, place))
    console().print(branches[""])


def _line(name: str, place: Place) -> str:
    """The node's name and its members, by group; a leaf without any says none."""
    if not place.members:
        return f"{escape(name)}: [dim]none[/]" if place.leaf else escape(name)
    return f"{escape(name)}: [bold]{escape(' '.join(place.members))}[/]"
