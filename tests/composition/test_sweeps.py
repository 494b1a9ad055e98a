"""Grids: order, names, what is left out, and agreement with Hydra itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from personalign.composition import composer, sweeps
from personalign.composition.compose import compose
from personalign.composition.identity import identity
from personalign.composition.sweeps import cells, read
from personalign.contracts import UserError

SWEEP = """
title: A grid
base: [memory=stance]
baseline: plain
rows:
  plain: []
  "it's, steered": [generation=steer, alignment=train]
grid:
  sampling.temperature: [0, 0.5]
  memory: [[stance], none]
seeds: [0, 1]
published:
  - {row: plain, value: 0.5, source: a table}
"""


@pytest.fixture
def grid(own_house: Path) -> Path:
    path = own_house / "sweeps" / "grid.yaml"
    path.write_text(SWEEP)
    return path


def test_cells_come_in_order_with_rows_outermost_and_seeds_innermost(grid: Path) -> None:
    sweep = read("grid")
    assert [cell.name for cell in sweep.cells][:3] == [
        "plain, sampling.temperature=0, stance, seed=0",
        "plain, sampling.temperature=0, stance, seed=1",
        "plain, sampling.temperature=0, no memory, seed=0",
    ]
    assert len(sweep.cells) == 8 + 4
    assert [cell.cfg.seed for cell in sweep.cells[:2]] == [0, 1]
    assert sweep.cells[0].row == sweep.cells[1].row == sweep.cells[0].cfg.name
    assert (sweep.title, sweep.baseline) == ("A grid", "plain")
    assert sweep.published == [{"row": "plain", "value": 0.5, "source": "a table"}]
    assert [cell.name for cell in cells(grid)] == [cell.name for cell in sweep.cells]


def test_illegal_cells_are_left_out_with_their_reason(grid: Path) -> None:
    out = read(grid).left_out
    assert len(out) == 4
    assert all("no memory" in name and name.startswith("it's, steered") for name in out)
    assert set(out.values()) == {"generation=steer needs state.stance: add memory=read|stance"}


def test_the_overrides_of_a_cell_compose_it_again(grid: Path) -> None:
    for cell in cells(grid):
        assert compose(cell.overrides) == cell.cfg


def test_hydra_itself_composes_the_same_cells(grid: Path) -> None:
    """Values put into a cached composition equal what Hydra makes of all overrides in one go."""
    found = cells(grid)
    for cell in found:
        assert _plain(cell.cfg) == _by_hydra(grid.parents[1], cell.overrides)
    assert len({identity(cell.cfg) for cell in found}) == len(found)


def test_hydra_itself_composes_the_same_from_a_file(own_house: Path) -> None:
    (own_house / "experiments" / "e.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /memory: [keep, stance]\n  - override /generation: steer\n"
        "  - override /alignment: [train]\n  - _self_\nmemory: {keep: {kinds: [a, b]}}\ndata: {mixture: {long: 2}}\n"
    )
    lines = ["alignment.train.steps=3", "data.mixture.odd=4.5", "generation.mode=null"]
    forced = ["+experiments=e", *lines[:1], f"+{lines[1]}", *lines[2:]]
    assert _plain(compose(lines, "e")) == _by_hydra(own_house, forced)


def _by_hydra(house: Path, overrides: Any) -> Any:
    with initialize_config_dir(str(house / "conf"), version_base="1.3"):
        cfg = hydra_compose("config", [*overrides, f"hydra.searchpath=[file://{house}]"])
    cfg.paths.cache = str(Path(cfg.paths.cache).expanduser())
    return OmegaConf.to_container(cfg, resolve=True)


def _plain(cfg: Any) -> Any:
    return {key: value for key, value in OmegaConf.to_container(cfg, resolve=True).items() if key != "choices"}


def test_hydra_is_asked_once_for_a_choice_of_every_group(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    true = composer.compose_choices
    spy = lambda homes, picked: asked.append(picked) or true(homes, picked)  # noqa: E731
    monkeypatch.setattr(composer, "compose_choices", spy)
    read(grid)
    assert sorted(asked) == [(), (("memory", ("stance",)), ("generation", "steer"), ("alignment", ("train",)))]


def test_the_last_word_is_the_command_lines(grid: Path) -> None:
    assert {cell.cfg.sampling.temperature for cell in read(grid, ["sampling.temperature=1"]).cells} == {1.0}


def test_rows_and_base_may_be_experiment_files(own_house: Path) -> None:
    (own_house / "experiments" / "a.yaml").write_text(
        "defaults:\n  - override /memory: keep\nsampling: {top_k: 5}\nname: A\n"
    )
    (own_house / "experiments" / "b.yaml").write_text("sampling: {n: 3}\n")
    path = own_house / "sweeps" / "files.yaml"
    path.write_text("base: experiments/a.yaml\nrows:\n  one: []\n  two: [experiments/b.yaml, memory.keep.k=9]\n")
    one, two = cells(path)
    assert (one.cfg.name, one.cfg.sampling.top_k, one.cfg.sampling.n) == ("one", 5, 1)
    assert (two.cfg.name, two.cfg.sampling.top_k, two.cfg.sampling.n, two.cfg.memory.keep.k) == ("two", 5, 3, 9)


def test_a_note_goes_with_every_cell_of_its_row(own_house: Path) -> None:
    path = own_house / "sweeps" / "noted.yaml"
    path.write_text("rows:\n  a: []\n  b: []\ngrid: {precision: [bf16, fp32]}\nnotes: {b: no winner}\n")
    assert [cell.note for cell in cells(path)] == [None, None, "no winner", "no winner"]


@pytest.mark.parametrize("more", ["rows:\n  a: []\n  b: [paths.runs=x]\n", "grid: {paths.runs: [x, y]}\n"])
def test_the_runs_of_a_sweep_lie_in_one_folder(own_house: Path, more: str) -> None:
    path = own_house / "sweeps" / "apart.yaml"
    path.write_text(more)
    with pytest.raises(UserError) as told:
        read(path)
    (line,) = str(told.value).splitlines()
    assert "apart.yaml: " in line and " has paths.runs=" in line and "set paths.runs on the command line" in line
    assert {cell.cfg.paths.runs for cell in read(path, ["paths.runs=z"]).cells} == {"z"}
    path.write_text("base: [paths.runs=x]\nrows:\n  a: []\n  b: [precision=fp32]\n")
    assert {cell.cfg.paths.runs for cell in read(path).cells} == {"x"}


def test_a_grid_without_rows(own_house: Path) -> None:
    path = own_house / "sweeps" / "bare.yaml"
    path.write_text("grid:\n  precision: [bf16, fp32]\n")
    assert [cell.name for cell in cells(path)] == ["precision=bf16", "precision=fp32"]


@pytest.mark.parametrize(
    "value",
    [
        "it's",
        "a,b",
        "x=y",
        "",
        " ",
        "true",
        "null",
        "1",
        "1e3",
        "\\",
        "\\'",
        '"',
        "[a]",
        "{a:b}",
        "${seed}x",
        "ü",
        None,
    ],
)
def test_any_text_survives_the_grid(house: Path, value: str | None) -> None:
    from personalign.composition.layers import from_overrides

    (setting,) = from_overrides([f"name={sweeps._text(value)}"]).settings
    assert setting.value == value


@pytest.mark.parametrize("value", [True, 0, 1.5, 1e-05, [1, "a b"], {"a": [None, "b"]}, []])
def test_any_value_survives_the_grid(house: Path, value: Any) -> None:
    from personalign.composition.layers import from_overrides

    (setting,) = from_overrides([f"name={sweeps._text(value)}"]).settings
    assert setting.value == value and type(setting.value) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "rows:\n  a: [seed=x, foo=1]\n  b: [seed=x]\n",
            ["grid.yaml: a: foo=1: no such", 'grid.yaml: a: seed="x": must be'],
        ),
        ("rows:\n  a: []\nbaseline: b\n", ["baseline b is no row; there is a"]),
        ("rows:\n  a: []\nseeds: [0, 1, 0]\n", ["two cells are called 'a, seed=0': name every seed"]),
        ("rows:\n  a: []\ngrid: {seed: [1, 1]}\n", ["two cells are called 'a, seed=1': name every seed"]),
        ("rows:\n  a: []\nnotes: {b: odd}\n", ["notes b is no row; there is a"]),
        ("rows:\n  a: []\nseed: [1]\n", ["grid.yaml: seed: no such key; did you mean seeds?"]),
        ("rows: [a]\n", ['grid.yaml: rows=["a"]: must be a mapping']),
        ("rows:\n  a: [generation=steer]\n", ["no cell is legal", "needs state.stance", "needs policy.features"]),
        ("base: experiments/none.yaml\nrows:\n  a: []\n", ["grid.yaml: a: experiments/none.yaml: no such file"]),
        ("rows:\n a: [\n", ["grid.yaml, line 3"]),
    ],
)
def test_mistakes_are_told_once(own_house: Path, text: str, said: list[str]) -> None:
    path = own_house / "sweeps" / "grid.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True))


def test_a_sweep_that_is_not_there(grid: Path) -> None:
    with pytest.raises(UserError, match=r"gird: no such file, nor a name in sweeps/; did you mean grid\?"):
        read("gird")


def test_rows_beside_the_grid_come_first_and_are_not_crossed(own_house: Path) -> None:
    path = own_house / "sweeps" / "beside.yaml"
    path.write_text("beside: {base: [], cold: [sampling.temperature=0.1]}\nbaseline: base\ngrid: {seed: [0, 1]}\n")
    sweep = read(path)
    assert [cell.name for cell in sweep.cells] == ["base", "cold", "seed=0", "seed=1"]
    assert [cell.cfg.sampling.temperature for cell in sweep.cells[:2]] == [0.0, 0.1]
    assert sweep.baseline == "base" == sweep.cells[0].row


def test_a_name_in_rows_and_beside_them_is_said(own_house: Path) -> None:
    path = own_house / "sweeps" / "beside.yaml"
    path.write_text("beside: {base: []}\nrows: {base: []}\n")
    with pytest.raises(UserError, match="base stands in rows and beside them"):
        read(path)
