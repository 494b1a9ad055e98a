"""Numbers of the shipped parts, and of all else, that make no sense: refused, each by its type."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig

from personalign.composition.compose import assemble
from personalign.composition.composer import Composer
from personalign.composition.layers import from_overrides
from personalign.contracts import UserError

# A key, what is refused at its end, and a value near it that makes sense.
ENDS = [
    ("sampling.top_p", 0, 1e-3),
    ("data.top_p", 0.0, 1.0),
    ("alignment.cope.top_p", 0.0, 1.0),
]
CHOICES = ("data=exact_users", "alignment=[user_adapter,cope]")
COMPOSED = Composer()


def composed(*words: str) -> DictConfig:
    return assemble([], from_overrides([*CHOICES, *words]), COMPOSED)


def refusal(*words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        composed(*words)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(("key", "refused", "taken"), ENDS, ids=[key for key, *_ in ENDS])
def test_an_end_that_makes_no_sense_is_refused(key: str, refused: float, taken: float) -> None:
    composed(f"{key}={taken}")
    (line,) = refusal(f"{key}={refused}")
    assert line.startswith(f"{key}={refused}: must be ")
