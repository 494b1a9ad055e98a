"""Output refinement: which adapter is asked what, how often, and who is told whose preference."""

from __future__ import annotations

from typing import Any

import pytest

from personalign.contracts import UserError
from personalign.generation.aligner import Aligner, MetaAligner
from personalign.plans import Chat, Plan, PolicySpec, Stream
from personalign.types import Message, Request, Response, UserState

ASK = Request(id="q", user="ada", messages=(Message("system", "Be kind."), Message("user", "What is tea?")))
SPEC = PolicySpec(aligned=(("sft", 1.0),), corrector=(("aligner", 1.0),))
POEMS = UserState(profile="I like {draft}.")


def said(*texts: str) -> list[Response]:
    return [Response(request="q", text=t, sample=i) for i, t in enumerate(texts)]


def asked(text: str) -> Plan:
    chat = (Message("system", "Be kind."), Message("user", text))
    return Plan((Stream((Chat(chat),), 1.0, SPEC.corrector),))


def meta(**changes: Any) -> MetaAligner:
    texts = {"template": "{request}: {draft}", "objectives": "{request}: {draft}, but {profile}"}
    return MetaAligner(**{"rounds": 1, **texts, "equal": "{draft} as {dimensions}", **changes})


def test_what_is_equal_is_asked_by_dimension_and_of_nobody_in_particular() -> None:
    (system, turn) = meta().equalisation(ASK, "Leaves {dimensions}.", ["warmth", "grade"])
    assert system == ASK.messages[0]
    assert turn.content == "Leaves {dimensions}. as warmth, grade\n\nWhat is tea?"


def test_the_policy_drafts_on_the_plain_request_and_the_corrector_sees_the_draft() -> None:
    part = Aligner(rounds=1, template="{request}: {draft}")
    assert part.first(ASK, POEMS, SPEC) == Plan((Stream((Chat(ASK.messages),), 1.0, SPEC.aligned),))
    assert part.next(ASK, POEMS, said("{request} Leaves."), SPEC) == asked("What is tea?: {request} Leaves.")
    assert part.next(ASK, POEMS, said("Leaves.", "Green leaves."), SPEC) is None
    assert part.final(said("Leaves.", "Green leaves.")).text == "Green leaves."


def test_a_further_round_corrects_the_newest_answer() -> None:
    part = Aligner(rounds=2, template="{draft}")
    assert part.next(ASK, POEMS, said("Leaves.", "Green."), SPEC) == asked("Green.\n\nWhat is tea?")
    assert part.next(ASK, POEMS, said("Leaves.", "Green.", "Tea."), SPEC) is None


@pytest.mark.parametrize("profile", [None, " \n"])
def test_the_objectives_are_the_profile_and_who_has_none_is_corrected_as_everybody(profile: str | None) -> None:
    assert meta().next(ASK, POEMS, said("Leaves."), SPEC) == asked("What is tea?: Leaves., but I like {draft}.")
    nobody = UserState(profile=profile)
    assert meta().next(ASK, nobody, said("Leaves."), SPEC) == asked("What is tea?: Leaves.")
    assert meta().render(ASK, POEMS) == ASK.messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "{request}"}, r"lacks \{draft\}"),
        ({"template": "{draft} {profile}"}, r"unknown \{profile\}"),
        ({"objectives": "{draft}"}, r"lacks \{profile\}"),
        ({"equal": "{draft}"}, r"lacks \{dimensions\}"),
    ],
)
def test_a_wrong_template_is_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        meta(**changes)
