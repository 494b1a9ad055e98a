"""Fixtures that many tests share: a tiny float32 policy, and the embedded model where it has been fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from personalign.contracts import UserError
from personalign.runtime.threads import configure

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
configure(processes=_WORKERS, index=int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))


@pytest.fixture
def tiny(tmp_path: Path) -> object:
    """A random byte-level Llama in float32: exact enough for equalities, fast enough for many of them."""
    from personalign.policy.loading import Tiny

    model = Tiny(hidden=32, layers=2, heads=4, kv_heads=2, context=512, seed=0)
    return model.build(tmp_path / "cache", "fp32")


@pytest.fixture(scope="session")
def _smollm2() -> object:
    from personalign.policy.loading import Pretrained

    cache = Path(os.environ.get("PERSONALIGN_CACHE", "~/.cache/personalign")).expanduser()
    try:
        return Pretrained(name="smollm2", revision=None).build(cache, "fp32")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def smollm2(_smollm2: object) -> object:
    """The embedded model in float32, without adapters; skips where `personalign model fetch` has not run."""
    _smollm2.reset()  # type: ignore[attr-defined]
    return _smollm2


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The embedded model behind an endpoint (`serving.Served`); skips where either is missing."""
    from serving import Served
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("transformers serve needs fastapi, uvicorn and openai: pip install 'transformers[serving]'")
    from personalign.policy.assets import model_dir

    try:
        folder = model_dir("smollm2", Path(os.environ.get("PERSONALIGN_CACHE", "~/.cache/personalign")).expanduser())
    except UserError as error:
        pytest.skip(str(error))
    made = Served(folder, tmp_path_factory.mktemp("served") / "log")
    try:
        made.wait()
        yield made
    finally:
        made.process.kill()
        made.process.wait()


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random BERT of two layers, which reads letters."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:?![]"
    names = [*specials, *letters, *(f"##{letter}" for letter in letters)]
    core = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    core.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=64
    )
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    folder = tmp_path_factory.mktemp("encoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
