"""Splits that depend on a prompt's words alone, so that no prompt is in two of them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Mapping

from personalign.contracts import UserError
from personalign.types import Split


def digest(*parts: object) -> str:
    """16 hex digits that depend on the texts of `parts` and on where each ends; equal on every machine."""
    sha = hashlib.sha256()
    for part in parts:
        text = str(part).encode()
        sha.update(len(text).to_bytes(8, "big") + text)
    return sha.hexdigest()[:16]


def normalise(prompt: str) -> str:
    """The prompt without case, punctuation and spacing: two prompts of equal value never part."""
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(re.findall(r"\w+", folded)) or " ".join(folded.split())


def split_of(prompt: str, *, validation: float, test: float, seed: int) -> Split:
    """The split of a prompt, from a hash of its words and the seed.

    It depends on no other prompt: leaving out users or files, or adding some, moves none. Fractions are
    met in expectation; a larger `validation` takes from train alone.
    """
    draw = int(digest("split", seed, normalise(prompt)), 16) / 2**64
    if draw < test:
        return "test"
    return "validation" if draw < test + validation else "train"


def check_fractions(validation: float, test: float) -> None:
    """Raise UserError when validation and test take more than all."""
    if validation + test > 1 + 1e-9:
        raise UserError(f"data.validation={validation} and data.test={test} add up to more than 1: lower one of them")


def check_splits(found: Collection[str], fractions: Mapping[str, float], prompts: int) -> None:
    """Raise UserError when a split was asked for and no prompt fell into it."""
    empty = [name for name, fraction in fractions.items() if fraction > 0 and name not in found]
    if empty:
        raise UserError(
            f"no prompt fell into {' and '.join(empty)}: {prompts} different prompts are too few for "
            f"data.validation={fractions['validation']} and data.test={fractions['test']}; "
            "set the fraction to 0 or raise it, or choose another data.seed"
        )
