"""What can be counted in a text: words, n-grams, how diverse they are and how often they repeat.

A word is a run of letters, digits and inner apostrophes or hyphens; a Chinese or Japanese character is a word
of its own. Case and punctuation do not count. An undefined share is NaN and is left out of every mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

IDEOGRAPH = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{IDEOGRAPH}]|[^\W_{IDEOGRAPH}]+(?:['\u2019-][^\W_{IDEOGRAPH}]+)*")
ORDERS = (2, 3, 4)
REPEAT_ORDER = 4


def words(text: str) -> list[str]:
    """The words of a text in lower case; also what a length in words means everywhere in evaluation."""
    return WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], order: int) -> list[tuple[str, ...]]:
    """All runs of `order` tokens, repeats included; [] for a text that is too short."""
    return list(zip(*(tokens[start:] for start in range(order)), strict=False))


def unique_share(grams: Sequence[tuple[str, ...]]) -> float:
    """How many of the n-grams are different, in (0, 1]; 1 for none, since then nothing repeats."""
    return len(set(grams)) / len(grams) if grams else 1.0


def diversity(text: str) -> float:
    """The product over n = 2, 3, 4 of unique / all n-grams of one answer (the diversity of arXiv 2410.04070).

    An answer of fewer than two words has no n-gram and is undefined (NaN); a higher order that has none is 1.
    """
    tokens = words(text)
    if len(tokens) < min(ORDERS):
        return math.nan
    return math.prod(unique_share(ngrams(tokens, order)) for order in ORDERS)


def distinct(texts: Iterable[str]) -> float:
    """The same product over all answers of one user together: low when every answer says the same.

    N-grams never span two answers. It falls as answers are added, so compare equal numbers of answers only.
    """
    tokens = [words(text) for text in texts]
    shares = [unique_share([g for t in tokens for g in ngrams(t, order)]) for order in ORDERS]
    return math.prod(shares) if any(len(t) >= min(ORDERS) for t in tokens) else math.nan


def repetition(text: str) -> float:
    """The share of an answer's 4-grams that it said before, in [0, 1): text that degenerates into loops.

    Undefined (NaN) below four words.
    """
    grams = ngrams(words(text), REPEAT_ORDER)
    return 1.0 - unique_share(grams) if grams else math.nan
