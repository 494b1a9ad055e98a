"""From overrides and files to one composition."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from personalign.composition.compose import compose
from personalign.contracts import UserError

PAD = ["memory=stance", "generation=steer", "alignment=train"]
EXPERIMENT = """# @package _global_
# Steers.
defaults:
  - override /memory: [stance, keep]
  - override /generation: steer
  - override /alignment: [train]
  - override /reward@guide: exact
  - _self_
generation:
  beta: 2
sampling: {max_new_tokens: 50, top_k: 3}
name: steered
"""


@pytest.fixture
def experiment(own_house: Path) -> Path:
    path = own_house / "experiments" / "steered.yaml"
    path.write_text(EXPERIMENT)
    return path


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("memory=[stance,keep]", ["stance", "keep"]),
        ("memory=[keep,stance]", ["keep", "stance"]),
        ("memory=keep", ["keep"]),
        ("memory=[keep]", ["keep"]),
        ("memory=none", []),
        ("memory=[none]", []),
        ("memory=[]", []),
    ],
)
def test_groups_that_hold_several_keep_their_order(house: Path, override: str, kept: list[str]) -> None:
    cfg = compose([override])
    assert list(cfg.memory) == kept
    assert cfg.choices.memory == kept


def test_a_reward_serves_under_two_names(house: Path) -> None:
    cfg = compose(["memory=stance", "reward@guide=exact", "guide.scale=2", "reward@truth=exact"])
    assert (cfg.guide.scale, cfg.truth.scale) == (2.0, 1.0)
    assert (cfg.choices.guide, cfg.choices.truth) == ("exact", "exact")
    assert "reward" not in cfg


def test_values_are_typed_resolved_and_closed(house: Path) -> None:
    cfg = compose([*PAD, "generation.beta=3", "generation.mode=null", "paths.cache=/c", "trainer=ddp", "devices=2"])
    assert isinstance(cfg.generation.beta, float)
    assert cfg.generation.mode is None
    assert cfg.generation.where == "/c/x"
    assert cfg.trainer.devices == 2
    with pytest.raises(ConfigAttributeError):
        cfg.sampling.topk = 3


def test_home_is_expanded_in_paths_and_what_reads_them(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    cfg = compose(PAD)
    assert cfg.paths.cache == "/somewhere/cache"
    assert cfg.generation.where == "/somewhere/cache/x"
    assert cfg.paths.runs == "runs"


def test_a_mapping_of_a_part_takes_new_keys_and_loses_old_ones(house: Path) -> None:
    assert compose(["data.mixture.long=2"]).data.mixture == {"warm": 1.0, "long": 2.0}
    assert compose(["+data.mixture.long=2"]).data.mixture == {"warm": 1.0, "long": 2.0}
    assert compose(["data.mixture={long: 2}"]).data.mixture == {"warm": 1.0, "long": 2.0}
    assert compose(["data.mixture.long=2", "~data.mixture.warm"]).data.mixture == {"long": 2.0}


@pytest.mark.parametrize("name", ["steered", "steered.yaml", "experiments/steered", "experiments/steered.yaml"])
def test_an_experiment_by_its_name(experiment: Path, name: str) -> None:
    cfg = compose([], name)
    assert list(cfg.memory) == ["stance", "keep"]
    assert (cfg.generation.beta, cfg.name, cfg.choices.guide) == (2.0, "steered", "exact")


def test_an_experiment_anywhere_on_disk(experiment: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "mine.yml"
    elsewhere.write_text(EXPERIMENT.replace("# @package _global_\n", ""))
    assert compose([], elsewhere) == compose([], str(experiment))


def test_precedence_is_part_scale_file_debug_line(experiment: Path) -> None:
    assert compose().sampling.max_new_tokens == 32
    assert compose([], experiment).sampling.max_new_tokens == 50
    assert compose(["scale=full"], experiment).sampling.max_new_tokens == 50
    assert compose(["scale=full"], experiment).alignment.train.steps == 1000
    fast = compose(["debug=fast"], experiment)
    assert (fast.sampling.max_new_tokens, fast.alignment.train.steps, fast.generation.beta) == (4, 1, 9.0)
    line = compose(["debug=fast", "sampling.max_new_tokens=7", "memory=stance"], experiment)
    assert (line.sampling.max_new_tokens, list(line.memory)) == (7, ["stance"])


def test_an_overlay_may_speak_to_all_that_is_chosen(house: Path) -> None:
    cfg = compose(["debug=fast", "alignment=[train,online]", "reward@guide=ratio"])
    assert [stage.steps for stage in cfg.alignment.values()] == [1, 1]


def test_an_overlay_speaks_only_of_what_is_chosen(house: Path) -> None:
    cfg = compose(["debug=fast"])
    assert cfg.alignment == {}
    assert set(cfg.generation) == {"_target_"}


def test_no_hydra_state_is_left_behind(own_house: Path) -> None:
    compose()
    assert not GlobalHydra.instance().is_initialized()


def test_no_part_is_imported(own_house: Path) -> None:
    target = compose(PAD).generation._target_
    assert target.rpartition(".")[0] not in sys.modules


def test_a_users_own_parts_join_the_shipped(
    own_house: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path_factory.mktemp("own")
    (own / "own_parts.py").write_text(
        "from personalign.contracts import Part\nclass Mine(Part):\n    def __init__(self, *, a: int) -> None: ...\n"
    )
    (own / "conf" / "generation").mkdir(parents=True)
    (own / "conf" / "generation" / "mine.yaml").write_text("_target_: own_parts.Mine\na: 1\n")
    (own / "experiments").mkdir()
    (own / "experiments" / "trial.yaml").write_text("defaults:\n  - override /generation: mine\n")
    monkeypatch.syspath_prepend(str(own))
    with pytest.raises(UserError, match="generation has no choice mine"):
        compose(["generation=mine"])
    monkeypatch.setenv("PERSONALIGN_PATH", str(own))
    assert compose(["generation=mine", "generation.a=2"]).generation.a == 2
    assert compose([], "trial").choices.generation == "mine"


def test_the_composition_survives_its_own_yaml(house: Path, tmp_path: Path) -> None:
    from personalign.composition.validate import problems

    cfg = compose(PAD)
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    again = OmegaConf.load(tmp_path / "config.yaml")
    assert again == cfg
    assert OmegaConf.is_dict(again) and problems(again) == []
