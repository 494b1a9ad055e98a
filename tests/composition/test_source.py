"""The light view: what is read from a class without importing it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge

from personalign.composition.source import view
from personalign.contracts import Fraction, PositiveInt, UserError

BASE = """
from __future__ import annotations
raise RuntimeError("imported")

class Base:
    needs: tuple[str, ...] = ("a", "b")
    node = "the node"
    def __init__(self, k: int, *, mode: Literal["x"] | None) -> None: ...

class Mixin:
    paper = "a paper"
"""
DERIVED = '''
from .base import Base as Root, Mixin

class Derived(Root, Mixin):
    """What it is.

    And more.
    """
    provides = ("c",)

class Own(Derived):
    needs = ()
    def __init__(self, *, n: PositiveInt, w: "dict[str, list[float]]") -> None: ...

class Keys(TypedDict):
    low: Fraction

class More(Keys):
    high: int | None

class Sharing(Derived):
    def __init__(self, *, n: PositiveInt, **rest: Unpack[More]) -> None: ...

class Open(Derived):
    def __init__(self, *, n: PositiveInt, **rest: object) -> None: ...
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of a user's own; importing it fails."""
    name = f"plugin_{abs(hash(tmp_path)) % 10**8}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("from .derived import Own\nraise RuntimeError('imported')\n")
    (folder / "base.py").write_text(BASE)
    (folder / "derived.py").write_text(DERIVED)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_literals_come_from_the_nearest_base(plugin: str) -> None:
    seen = view(f"{plugin}.derived.Derived")
    assert (seen.cls_name, seen.doc) == ("Derived", "What it is.")
    assert (seen.needs, seen.provides, seen.paper, seen.node) == (("a", "b"), ("c",), "a paper", "the node")
    assert seen.params == {"k": int, "mode": Literal["x"] | None}


def test_own_values_win_over_inherited(plugin: str) -> None:
    seen = view(f"{plugin}.derived.Own")
    assert (seen.needs, seen.provides) == ((), ("c",))
    assert seen.params == {"n": PositiveInt, "w": dict[str, list[float]]}


def test_shared_keys_are_those_of_a_typed_dict_and_its_bases(plugin: str) -> None:
    assert view(f"{plugin}.derived.Sharing").params == {"n": PositiveInt, "low": Fraction, "high": int | None}
    assert view(f"{plugin}.derived.Open").params == {"n": PositiveInt}


def test_a_class_is_found_where_its_package_names_it(plugin: str) -> None:
    assert view(f"{plugin}.Own").params == view(f"{plugin}.derived.Own").params


def test_nothing_is_imported(plugin: str) -> None:
    view(f"{plugin}.derived.Own")
    assert not [name for name in sys.modules if name.startswith(plugin)]


def test_an_edited_class_is_read_anew(plugin: str, tmp_path: Path) -> None:
    path = tmp_path / plugin / "derived.py"
    assert "n" in view(f"{plugin}.derived.Own").params
    path.write_text(DERIVED.replace("n: PositiveInt", "much_longer: PositiveInt"))
    assert "much_longer" in view(f"{plugin}.derived.Own").params


def test_aliases_of_contracts_carry_their_bounds() -> None:
    assert PositiveInt == Annotated[int, Ge(1)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("needs = tuple(x)", "needs must be a literal tuple of strings"),
        ("needs = ('a')", "needs must be a literal tuple of strings"),
        ("needs = (1,)", "needs must be a literal tuple of strings"),
        ("paper = f'{x}'", "paper must be a literal string"),
        ("strength = 'beta'", "strength must name one of its arguments, of which it has none"),
        ("candidates = 'top_k'", "candidates must name one of its arguments, of which it has none"),
        ("def __init__(self, *, a) -> None: ...", "argument a has no annotation"),
        ("def __init__(self, *, a: Tensor) -> None: ...", "the annotation of a, Tensor, cannot be checked"),
    ],
)
def test_what_cannot_be_read_is_said(body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "badly_written.py").write_text(f"class Bad:\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=said):
        view("badly_written.Bad")


def test_a_syntax_error_names_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("x = 1\nclass A(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"broken_module\.py, line 2"):
        view("broken_module.A")


@pytest.mark.parametrize("target", ["Plain", "no_such_package.x.A", "personalign.nowhere.A", "personalign.types.A", ""])
def test_a_target_that_is_not_there(target: str) -> None:
    with pytest.raises(UserError, match="no such class"):
        view(target)
