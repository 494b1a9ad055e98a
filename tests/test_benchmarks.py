"""The benchmarks run on a tiny model, print their ratios, and compare sides that compute the same."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
RATIO = re.compile(r"^(.+?) .* ratio +([\d.]+)", re.MULTILINE)
ROW = re.compile(r"^(.+?) +[\d.]+ pairs/s +losses ([\d. ]+), from ours at most (\S+)$", re.MULTILINE)


TINY = ("--model", "tiny", "--precision", "fp32")


def said(name: str, *options: str) -> str:
    command = [sys.executable, SCRIPTS / f"{name}.py", "--repeats", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ratios(text: str) -> list[float]:
    return [float(ratio) for _, ratio in RATIO.findall(text)]


def test_decode_prints_a_ratio_for_every_comparison() -> None:
    sizes = ("--new", "6", "--batches", "1", "3", "--features", "1", "2")
    unequal = ("--groups", "2", "3", "--turns", "4", "--lengths", "4", "12")
    text = said("decode", *TINY, *sizes, *unequal)
    assert len(ratios(text)) == 2 + 2 * 3 + 2 * 2 * 2 + 2
    assert len(re.findall(r"continuous.* (4/[\d.]+/12) and \1$", text, re.MULTILINE)) == 2
    assert all(ratio > 0 for ratio in ratios(text))


def test_released_loops_give_the_same_answers() -> None:
    pad = ("--new", "6", "--settings", "60x1", "60x2", "40x3", "--looped", "2", "--pad-loop", "5")
    amulet = ("--prompt", "40", "--batch", "3", "--released-batch", "2", "--amulet-loop", "4", "--rounds", "5")
    text = said("released", *TINY, *pad, *amulet)
    assert len(ratios(text)) == 3 + 2 and all(ratio > 0 for ratio in ratios(text))
    alike = re.findall(r"^(PAD|Amulet).* (\d+) of (\d+) tokens alike$", text, re.MULTILINE)
    assert [int(all_) for _, _, all_ in alike] == [5, 10, 10, 8, 8], "of the answers that both sides gave"
    assert all(same == all_ for _, same, all_ in alike)
    assert text.count("6/6/6 and 5/5/5") == 3 and text.count("6/6/6 and 4/4/4") == 2  # the loops make fewer tokens


def test_args_compares_equal_answers() -> None:
    text = said("args", *TINY, "--new", "5", "--prompt", "20", "--batches", "1", "3", "--candidates", "4")
    assert len(ratios(text)) == 2 * 2 and all(ratio > 0 for ratio in ratios(text))
    assert text.count("100% of tokens alike") == 4
    shares = [float(share) for share in re.findall(r"^cache of .* MB, ([\d.]+)$", text, re.MULTILINE)]
    assert len(shares) == 2 and all(0.25 < share < 0.3 for share in shares), "a fourth, and the room for leaves"


def test_history_compares_equal_answers() -> None:
    text = said("history", *TINY, "--history", "300", "--requests", "4", "--request", "12", "--new", "5")
    assert len(ratios(text)) == 2 and text.count("4 of 4 answers equal") == 2
    (once, all_of_it), (each, whole) = re.findall(r"(\d+) of (\d+) tokens of prompts fed", text)
    assert int(once) < int(whole) / 2 and each == whole == all_of_it


def test_train_compares_equal_losses() -> None:
    pytest.importorskip("trl")
    text = said("train", *TINY, "--prompt", "60", "--answer", "20", "--batch", "2", "--steps", "2")
    rows = {name: (losses.split(), float(apart)) for name, losses, apart in ROW.findall(text)}
    assert {"TRL as it comes", "TRL at its best", "ours", "nothing saved"} < set(rows)
    assert len(rows["ours"][0]) == 3
    assert len(set(rows["ours"][0])) > 1  # something was learnt
    assert max(apart for _, apart in rows.values()) < 1e-5
    assert len(ratios(text)) == 3 + 4  # ours beside three others, and four savings
    assert all(ratio > 0 for ratio in ratios(text))


def test_users_compares_equal_losses() -> None:
    sizes = ("--users", "3", "--batches", "1", "2", "--prompt", "60", "--answer", "20", "--steps", "2")
    for objective in ("nll", "dpo"):
        text = said("users", *TINY, *sizes, "--objective", objective)
        apart = re.findall(r"user steps/s +losses [\d. ]+, apart (\S+)$", text, re.MULTILINE)
        assert len(apart) == 4 and max(map(float, apart)) < 1e-5
        assert len(ratios(text)) == 2 * 3 and all(ratio > 0 for ratio in ratios(text))


def test_rloo_compares_answers_of_one_length() -> None:
    pytest.importorskip("trl")
    text = said("rloo", *TINY, "--prompt", "60", "--answer", "9", "--batch", "2", "--samples", "3", "--steps", "2")
    assert text.count("of 9 to 9 tokens") == 3
    assert len(ratios(text)) == 2 and all(ratio > 0 for ratio in ratios(text))


def test_store_compares_every_size_with_the_first() -> None:
    text = said("store", "--users", "20", "200", "--events", "3", "--reads", "50")
    assert text.count("MB: p50 of one user") == text.count("forgetting one") == 2
    first, second = ratios(text)
    assert first == 1.0 and second > 0


def test_without_trl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_shared", ModuleType("_shared"))  # it would settle the threads anew
    monkeypatch.setitem(sys.modules, "trl", None)
    need = runpy.run_path(str(SCRIPTS / "_trl.py"))["need"]
    with pytest.raises(SystemExit, match="pip install 'trl"):
        need()


@pytest.mark.slow
def test_a_sweep_in_one_process_is_compared_with_processes() -> None:
    text = said("sweep", *TINY, "--cells", "4", "--users", "3", "--new", "2")
    first, median = ratios(text)
    assert 0 < first == median < 1
    assert text.count("generation ") == 2, "where the time of both sides went"
