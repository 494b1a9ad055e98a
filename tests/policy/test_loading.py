"""Models that cannot be loaded: one plain line that names the model and says what is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from personalign.contracts import UserError
from personalign.policy.loading import Pretrained, Tiny
from personalign.policy.tiny import byte_tokenizer, random_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_llama(32, 2, 4, 2, 64, 0).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_whole_one_is_loaded(folder: Path, tmp_path: Path) -> None:
    assert Pretrained(name=str(folder), revision=None).build(tmp_path, "fp32").context == 64


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json", "tokenizer.json", ""])
def test_a_damaged_file_or_a_lacking_folder_is_told_plainly(damaged: str, folder: Path, tmp_path: Path) -> None:
    name = folder if damaged else tmp_path / "nowhere"
    if damaged:
        (folder / damaged).write_bytes(b"{ no such thing")
    with pytest.raises(UserError, match=r"and holds configuration, tokenizer and whole safetensors$") as caught:
        Pretrained(name=str(name), revision=None).build(tmp_path, "fp32")
    assert str(caught.value).startswith(f"model '{name}' could not be loaded: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"heads": 3, "kv_heads": 3}, "heads=3 must divide hidden=32 into parts of even width"),
        ({"hidden": 33}, "heads=4 must divide hidden=33 into parts of even width"),
        ({"hidden": 36}, "heads=4 must divide hidden=36 into parts of even width"),
        ({"kv_heads": 3}, "kv_heads=3 must divide heads=4"),
    ],
)
def test_heads_that_do_not_fit_the_tiny_model_are_told_plainly(sizes: dict[str, int], said: str) -> None:
    fitting = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "context": 64, "seed": 0}
    with pytest.raises(UserError, match=rf"^model=tiny: {said}$"):
        Tiny(**{**fitting, **sizes})
