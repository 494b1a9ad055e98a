"""Values that word lists stand for: a scorer to test boundaries with, that needs no model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from personalign.contracts import Reward, UserError
from personalign.ratings.dimensions import WORD
from personalign.types import Request, Score, UserState


class Lexicon(Reward):
    """v_k(y) = -(matches of the terms of value k) per 100 words: 0 where none is said, and never above 0.

    A test instrument, no judge of harm: it is blind to negation, context, spelling and other languages, and calls
    harmful what only speaks of harm. For a measurement a classifier stands in its place. The total is the sum.
    Raises UserError for a value without terms and for an empty term.
    """

    needs = ()
    provides = ()
    paper = "ours; arXiv 2503.17003, section 3.2"
    node = "objectives / universal values"

    def __init__(self, *, values: dict[str, list[str]]) -> None:
        """`values` holds by name the terms that speak against a value: words or phrases of any case; a star at the
        end of a term stands for any ending."""
        self._patterns = {name: _pattern(name, terms) for name, terms in values.items()}

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        return [self._score(text.replace("\u2019", "'")) for text in responses]

    def _score(self, text: str) -> Score:
        words = max(1, len(WORD.findall(text)))
        # 0.0 - x, since -0.0 is not what a reader expects of a text without a match.
        found = {name: 0.0 - 100.0 * len(p.findall(text)) / words for name, p in self._patterns.items()}
        return Score(sum(found.values(), 0.0), found)


def _pattern(name: str, terms: Sequence[str]) -> re.Pattern[str]:
    """Whole terms, the longest first, so that none is counted twice in one place."""
    if not terms or not all(term.strip(" *") for term in terms):
        raise UserError(f"reward lexicon: value {name}: a list of words or phrases is expected, none of them empty")
    ordered = sorted((term.strip() for term in terms), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(_term, ordered))})(?!\w)", re.IGNORECASE)


def _term(term: str) -> str:
    phrase = r"\s+".join(re.escape(word) for word in term.rstrip("*").split())
    return phrase + (r"\w*" if term.endswith("*") else "")
