"""Dimensions of a text that can be computed: pure functions of its characters, in linear time.

A *word* is a run of letters and digits, apostrophes inside included. A *sentence* ends at `.`, `!` or `?`
before a space, or at a line break; the marker of a list item (`1.`, `-`) belongs to no sentence. Densities
count per 100 words, so that a text that was cut off in the middle is rated like its whole; a last sentence
without an end is left out wherever the length of sentences matters. Without words all ratings are 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
MARKER = re.compile(r"^[ \t]*(?:[-*•+]|\d{1,3}[.)]|#{1,6})[ \t]+", re.MULTILINE)
BREAK = re.compile(r"(?<=[.!?])[\"'\u201d)*]*\s+|\n+")
END = re.compile(r"[.!?][\"'\u201d)*]*\Z")
VOWELS = re.compile(r"[aeiouy]+")


def vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


ADDRESS = vocabulary("you your yours yourself yourselves you're you'll you've you'd")
PRONOUNS = vocabulary(
    "i me my mine myself we us our ours ourselves he him his himself she her hers herself it its itself "
    "they them their theirs themselves"
)
ARTICLES = vocabulary("a an the")
PREPOSITIONS = vocabulary(
    "about above across after against along among around at before behind below beneath beside between "
    "beyond by despite during for from in inside into near of off on onto out outside over per since "
    "through throughout to toward towards under until upon via with within without"
)
HEDGES = vocabulary(
    "may might can could would perhaps maybe possibly probably usually often sometimes generally typically "
    "likely somewhat seem seems appear appears tend tends"
)
SHORT_FORM = re.compile(r"(?:n't|'(?:m|re|ve|ll|d))\Z")
# VADER's time grows with the square of a text, and its compound saturates: hence short windows.
WINDOW, WINDOWS = 20, 200
LONGEST = 30


@dataclass(frozen=True)
class Text:
    """A text and its parts, each worked out once."""

    raw: str

    @cached_property
    def spoken(self) -> list[str]:
        """The words as they are written."""
        return WORD.findall(self.raw)

    @cached_property
    def words(self) -> list[str]:
        return [word.lower() for word in self.spoken]

    @cached_property
    def sentences(self) -> list[list[str]]:
        """The words of each sentence; a last one without an end only where it is the only one."""
        parts = [part for part in BREAK.split(MARKER.sub("", self.raw)) if WORD.search(part)]
        if len(parts) > 1 and not END.search(parts[-1].rstrip()):
            parts.pop()
        return [WORD.findall(part) for part in parts]

    def density(self, count: float) -> float:
        """`count` per 100 words."""
        return 100.0 * count / len(self.words)

    def share(self, vocabulary: frozenset[str]) -> float:
        """Words of `vocabulary` per 100 words."""
        return self.density(sum(word in vocabulary for word in self.words))


@lru_cache(maxsize=1 << 16)
def syllables(word: str) -> int:
    """Groups of vowels (a e i o u y), less a silent final -e (not -le, -ee) or -ed (not -ted, -ded, -eed).

    At least 1. The rule is within one syllable for most English words, and says nothing of others.
    """
    word = word.lower()
    count = len(VOWELS.findall(word))
    silent = word.endswith("e") and not word.endswith(("le", "ee"))
    silent = silent or (word.endswith("ed") and not word.endswith(("ted", "ded", "eed")))
    return max(count - silent, 1)


def length(text: Text) -> float:
    """ln(1 + words)."""
    return math.log1p(len(text.words))


def grade(text: Text) -> float:
    """Flesch-Kincaid grade: 0.39 words per sentence + 11.8 syllables per word - 15.59 (Kincaid et al. 1975).

    A mean sentence counts as 40 words and a word as its first 30 letters at most, so that a text without
    full stops or spaces does not win.
    """
    words = [word for sentence in text.sentences for word in sentence]
    pace = min(len(words) / len(text.sentences), 40.0)
    spoken = sum(syllables(word[:LONGEST]) for word in words)
    return 0.39 * pace + 11.8 * spoken / len(words) - 15.59


@lru_cache(maxsize=1)
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def warmth(text: Text) -> float:
    """Mean VADER compound, in [-1, 1], of windows of 20 blank-separated words (Hutto and Gilbert 2014).

    A last window of less than 10 words joins the one before; the first 200 windows count.
    """
    tokens = [token[:LONGEST] for token in text.raw.split(maxsplit=WINDOW * WINDOWS)[: WINDOW * WINDOWS]]
    starts = list(range(0, len(tokens), WINDOW))
    if len(starts) > 1 and len(tokens) - starts[-1] < WINDOW // 2:
        starts.pop()
    windows = zip(starts, [*starts[1:], len(tokens)], strict=True)
    scores = [_vader().polarity_scores(" ".join(tokens[a:b]))["compound"] for a, b in windows]
    return math.fsum(scores) / len(scores)


def formality(text: Text) -> float:
    """Articles and prepositions less pronouns, short forms (n't, 'll) and exclamation marks, per 100 words.

    The closed-class part of the F-score of Heylighen and Dewaele (2002); the second person is `address`.
    """
    casual = sum(bool(SHORT_FORM.search(word)) for word in text.words) + text.raw.count("!")
    return text.share(ARTICLES | PREPOSITIONS) - text.share(PRONOUNS) - text.density(casual)


def concreteness(text: Text) -> float:
    """Square root of names and figures per 100 words: words with a digit, or a capital inside a sentence."""
    figures = sum(any(c.isdigit() for c in word) for word in text.spoken)
    inner = (word for sentence in text.sentences for word in sentence[1:])
    names = sum(word[0].isupper() and word != "I" and not word.startswith("I'") for word in inner)
    return math.sqrt(text.density(figures + names))


def structure(text: Text) -> float:
    """ln(1 + line breaks and list items per 100 words); blank lines count once with the line they end."""
    lines = [line for line in text.raw.splitlines() if line.strip()]
    items = sum(bool(MARKER.match(line)) for line in lines)
    return math.log1p(text.density(len(lines) - 1 + items))


def address(text: Text) -> float:
    """Square root of words that speak to the reader (you, your, ...) per 100 words."""
    return math.sqrt(text.share(ADDRESS))


def caution(text: Text) -> float:
    """Square root of hedges (may, could, often, likely, ...) per 100 words."""
    return math.sqrt(text.share(HEDGES))


DIMENSIONS: dict[str, Callable[[Text], float]] = {
    function.__name__: function
    for function in (length, grade, warmth, formality, concreteness, structure, address, caution)
}


@lru_cache(maxsize=1 << 14)
def _rate(text: str) -> tuple[float, ...]:
    read = Text(text.replace("\u2019", "'"))
    if not read.words:
        return (0.0,) * len(DIMENSIONS)
    return tuple(dimension(read) for dimension in DIMENSIONS.values())


def rate(text: str) -> dict[str, float]:
    """The raw rating of a text on every dimension."""
    return dict(zip(DIMENSIONS, _rate(text), strict=True))
