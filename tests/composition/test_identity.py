"""Equal results have equal names, and different results different ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from personalign.composition.compose import compose
from personalign.composition.identity import identity, label

BASE = ["memory=[stance,keep]", "generation=steer", "alignment=train"]


@pytest.mark.parametrize(
    "same",
    [
        ["trainer=ddp", "devices=2"],
        ["decoding.batch_size=3"],
        ["decoding.grouping=continuous", "decoding.token_budget=99"],
        ["decoding.prefix_tokens=null"],
        ["name=other"],
        ["paths.runs=/elsewhere"],
        ["paths.cache=/elsewhere"],
        ["generation.beta=1"],
        ["data.mixture.warm=1.0"],
        ["scale=cpu"],
        ["sampling.max_new_tokens=32"],
        ["prompts.preference='{profile}!'"],
    ],
)
def test_what_leaves_the_result_leaves_the_name(house: Path, same: list[str]) -> None:
    assert identity(compose([*BASE, *same])) == identity(compose(BASE))


@pytest.mark.parametrize(
    "other",
    [
        ["seed=1"],
        ["precision=fp32"],
        ["requests.limit=3"],
        ["sampling.n=2"],
        ["memory_budget=100"],
        ["generation.beta=1.5"],
        ["generation.where=/c/x"],
        ["memory=[keep,stance]"],
        ["memory=stance"],
        ["alignment.train.steps=2"],
        ["reward@guide=exact"],
        ["truth.scale=2"],
        ["data.dimensions=[long,warm]"],
        ["data.mixture.long=1"],
    ],
)
def test_what_changes_the_result_changes_the_name(house: Path, other: list[str]) -> None:
    assert identity(compose([*BASE, *other])) != identity(compose(BASE))


def test_the_name_is_16_hex_digits_and_the_same_in_every_process(house: Path) -> None:
    here = identity(compose(BASE))
    assert len(here) == 16 and int(here, 16) >= 0
    code = (
        "import sys; from pathlib import Path; from personalign.composition import home;"
        f"sys.path.insert(0, {str(house)!r}); home.home = lambda: Path({str(house)!r});"
        "from personalign.composition.compose import compose;"
        "from personalign.composition.identity import identity;"
        f"print(identity(compose({BASE!r})))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=env).strip() == here


def test_rounds_and_what_they_ask_change_the_name(house: Path) -> None:
    """What would be asked does not, where nothing is."""
    cfg = compose(BASE)
    before = identity(cfg)
    cfg.asking.requests = 7
    assert identity(cfg) == before
    cfg.rounds = 1
    asked = identity(cfg)
    cfg.asking.requests = 8
    assert len({before, asked, identity(cfg)}) == 3


def test_labels(house: Path) -> None:
    assert label(compose()) == "plain"
    assert label(compose(BASE)) == "steer + stance + keep + train"
    assert label(compose([*BASE, "name=PAD"])) == "PAD"


def test_an_edited_data_file_is_another_run(tmp_path: Path) -> None:
    from personalign.composition.compose import compose

    (tmp_path / "users.jsonl").write_text('{"id": "a"}\n', encoding="utf-8")
    words = ["data=jsonl", f"data.path={tmp_path}", "reward@truth=none", "reward@guide=none"]
    before = identity(compose(words))
    assert identity(compose(words)) == before
    (tmp_path / "users.jsonl").write_text('{"id": "b"}\n', encoding="utf-8")
    assert identity(compose(words)) != before


def test_a_store_that_has_changed_is_another_run(tmp_path: Path) -> None:
    from personalign.composition.compose import compose
    from personalign.store.store import Store
    from personalign.types import Event

    words = ["data=jsonl", f"data.store={tmp_path}/users.db", "reward@truth=none", "reward@guide=none"]
    none = identity(compose(words))
    with Store(tmp_path / "users.db", create=True) as store:
        empty = identity(compose(words))
        event = Event(id="e", user="ana", time=1, kind="text", payload={"text": "x"})
        store.add([event])
        filled = identity(compose(words))
        assert store.add([event]) == 0
        assert identity(compose(words)) == filled
    assert identity(compose(words)) == filled
    with Store(tmp_path / "users.db") as store:
        store.forget("ana")
    assert len({none, empty, filled, identity(compose(words))}) == 4
