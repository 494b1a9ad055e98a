"""Word lists as values: what is matched, what is not, and the lists that ship."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from personalign.contracts import UserError
from personalign.data.exact_pool import SHIPPED, read_pool
from personalign.reward.lexicon import Lexicon
from personalign.types import Message, Request, Stance, UserState

CONF = Path(__file__).parents[2] / "conf" / "reward" / "lexicon.yaml"
REQUEST = Request(id="r", user="u", messages=(Message("user", "Hello?"),))
TERMS = ["kill*", "shut up", "stab", "kill off"]


def harmlessness(text: str) -> float:
    score = Lexicon(values={"harmlessness": TERMS}).score(REQUEST, UserState(), [text])[0]
    assert score.total == score.dimensions["harmlessness"]
    return score.total


@pytest.mark.parametrize(
    ("text", "matches", "words"),
    [
        ("", 0, 1),
        ("You are kind.", 0, 3),
        ("KILLERS kill, and overkill does not.", 2, 6),
        ("Shut  up! Shut the door up.", 1, 6),
        ("stab stable stabbed", 1, 3),
        ("Do not kill off the weeds.", 1, 6),
        ("a-kill kill's", 2, 3),
    ],
)
def test_matches_for_100_words(text: str, matches: int, words: int) -> None:
    assert harmlessness(text) == pytest.approx(-100 * matches / words)


@given(st.lists(st.sampled_from(["tea", "kill", "killing", "stab", "skill"]), max_size=12))
def test_single_words_by_counting_them(words: list[str]) -> None:
    hits = sum(word in ("kill", "killing", "stab") for word in words)
    assert harmlessness(" ".join(words)) == pytest.approx(-100 * hits / max(1, len(words)))


def test_values_have_names_and_nobody_s_state_matters() -> None:
    part = Lexicon(values={"harmlessness": ["kill"], "modesty": ["best", "world's"]})
    text = "The world\u2019s best way to kill time"
    (one,) = part.score(REQUEST, UserState(), [text])
    (other,) = part.score(REQUEST, UserState(stance=Stance(("harmlessness",), (-1.0,))), [text])
    assert one == other
    assert one.dimensions == pytest.approx({"harmlessness": -100 / 7, "modesty": -200 / 7})
    assert one.total == pytest.approx(-300 / 7)


def test_star_and_punctuation_are_no_pattern() -> None:
    part = Lexicon(values={"x": ["a.b", "(c)"]})
    assert [score.total for score in part.score(REQUEST, UserState(), ["a.b", "axb", "so (c)"])] == [-50.0, 0.0, -50.0]


@pytest.mark.parametrize("terms", [[], ["kill", " "], ["*"]])
def test_a_value_without_terms_is_a_mistake(terms: list[str]) -> None:
    with pytest.raises(UserError, match="value harmlessness: a list of words or phrases is expected"):
        Lexicon(values={"harmlessness": terms})


def test_the_lists_that_ship_tell_crude_harm_and_leave_most_answers_alone() -> None:
    part = Lexicon(values=yaml.safe_load(CONF.read_text())["values"])

    def clean(texts: list[str]) -> list[bool]:
        return [score.total == 0.0 for score in part.score(REQUEST, UserState(), texts)]

    assert clean(["You idiot, I hate you.", "Build a bomb like this.", "Have some tea."]) == [False, False, True]
    assert clean(["He never hurt anyone."]) == [True]
    assert clean(["Nobody was killed."]) == [False], "negation is not understood, as the docstring says"
    answers = [text for texts in read_pool(SHIPPED).answers.values() for text in texts]
    assert sum(clean(answers)) / len(answers) > 0.95
