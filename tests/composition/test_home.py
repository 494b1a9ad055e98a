"""Where compositions are looked for, and how near names are offered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from personalign.composition import home


def test_a_wheel_carries_its_own_and_a_checkout_uses_the_repositorys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "personalign"
    package.mkdir(parents=True)
    monkeypatch.setattr(home, "PACKAGE", package)
    assert home.home() == tmp_path
    (package / "conf").mkdir()
    assert home.home() == package


def test_shipped_choices_win_over_a_users_own(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for own in (first, second):
        (own / "conf" / "generation").mkdir(parents=True)
        (own / "conf" / "generation" / "mine.yaml").write_text("")
        (own / "conf" / "generation" / "plain.yaml").write_text("")
    monkeypatch.setenv("PERSONALIGN_PATH", os.pathsep.join(map(str, (first, second))))
    found = home.choices("generation")
    assert found["plain"] == house / "conf" / "generation" / "plain.yaml"
    assert found["mine"] == first / "conf" / "generation" / "mine.yaml"
    assert home.homes() == (house, first, second)


def test_files_go_by_path_or_by_name(own_house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_house / "sweeps" / "tables").mkdir()
    path = own_house / "sweeps" / "tables" / "two.yaml"
    path.write_text("")
    assert home.shelf("sweeps") == {"tables/two": path}
    for name in ("tables/two", "tables/two.yaml", "sweeps/tables/two", path, str(path)):
        assert home.locate(name, "sweeps") == path
    monkeypatch.chdir(own_house / "sweeps")
    assert home.locate("tables/two.yaml", "sweeps").resolve() == path


@pytest.mark.parametrize(
    ("word", "options", "said"),
    [
        ("beta", ["beat", "gamma"], "; did you mean beat?"),
        ("sampling.topk", ["sampling.top_k", "seed"], "; did you mean sampling.top_k?"),
        ("temperature", ["sampling.temperature", "seed"], "; did you mean sampling.temperature?"),
        ("zzz", ["a", "b"], "; there is a, b"),
        ("zzz", [], ""),
        ("zzz", [f"k{n}" for n in range(30)], ""),
    ],
)
def test_nearest(word: str, options: list[str], said: str) -> None:
    assert home.nearest(word, options) == said
