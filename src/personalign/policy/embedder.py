"""Sentence embeddings: what a transformer encoder makes of whole texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from personalign.contracts import UserError
from personalign.policy.assets import model_dir
from personalign.runtime.progress import track

# What a model may be made of, as sentence-transformers names it in modules.json, and how it may pool.
MODULES = {"Transformer", "Pooling", "Normalize"}
MEAN = {"pooling_mode_mean_tokens", "mean"}
# A BERT's pooler is not read, and may be missing: it would then be random.
UNREAD = "pooler"


class Embedder:
    """Texts as unit vectors: the mean of an encoder's last hidden states over a text's tokens, divided by its length
    (Sentence-BERT, arXiv 1908.10084, section 3).

    Args:
        model, tokenizer: an encoder of transformers.
        max_tokens: where a text is cut, the encoder's own special tokens included.
        batch_size: texts side by side.
    """

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int, batch_size: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_tokens = min(max_tokens, tokenizer.model_max_length)
        self.batch_size = batch_size
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that a vector depends on besides the text: the weights, and where texts are cut."""
        digest = hashlib.sha256(f"mean {self.max_tokens}".encode())
        for name, tensor in self.model.state_dict().items():
            if UNREAD not in name:
                digest.update(name.encode() + bytes(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()))
        return digest.hexdigest()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [texts, width], one row a text; texts of like length share a batch."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: dict[int, NDArray[np.float32]] = {}
        with track("embedding", len(texts), "texts") as bar:
            for start in range(0, len(order), self.batch_size):
                some = order[start : start + self.batch_size]
                found.update(zip(some, self._embed([texts[i] for i in some]).numpy(), strict=True))
                bar.advance(len(some))
        return np.stack([found[i] for i in range(len(texts))])

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> Tensor:
        options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": self.max_tokens}
        inputs = self.tokenizer(texts, return_tensors="pt", split_special_tokens=True, **options).to(self.model.device)
        states = self.model(**inputs).last_hidden_state.float()
        real = inputs["attention_mask"][..., None]
        mean = (states * real).sum(1) / real.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=-1).cpu()


@lru_cache(maxsize=1)
def load_embedder(name: str, revision: str | None, cache: str, max_tokens: int, batch_size: int) -> Embedder:
    """An embedded encoder, a local folder or a hub name; the last one stays loaded, so that a sweep reads it once.

    Only safetensors are read and no code that comes with a model is run. Raises UserError when there is no such
    model, when a part of its weights is missing, and when its files say that it does more than pool by the mean.
    """
    from transformers import AutoModel, AutoTokenizer

    path = str(model_dir(name, Path(cache)))
    options: dict[str, Any] = {"trust_remote_code": False, "revision": revision}
    try:
        _check_modules(path, revision)
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model, found = AutoModel.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
        missing = sorted(key for key in found["missing_keys"] if UNREAD not in key)
        if missing:
            raise ValueError(f"it lacks the weights {', '.join(missing[:3])}")
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"encoder {name!r} could not be loaded: {reason}") from error
    return Embedder(model, tokenizer, max_tokens, batch_size)


def _check_modules(path: str, revision: str | None) -> None:
    """Raise ValueError for a model of sentence-transformers that is more than an encoder and a mean."""
    for module in _read(path, "modules.json", revision) or []:
        kind = str(module["type"]).rpartition(".")[2]
        if kind not in MODULES:
            raise ValueError(f"it has a module {kind}, and only an encoder with mean pooling is read")
        if kind == "Pooling":
            told = _read(path, f"{module['path']}/config.json", revision) or {}
            modes = {key for key, value in told.items() if key.startswith("pooling_mode_") and value is True}
            if others := ({*modes, told.get("pooling_mode", "mean")} - MEAN):
                raise ValueError(f"it pools by {', '.join(sorted(map(str, others)))}, and only the mean is read")


def _read(path: str, name: str, revision: str | None) -> Any:
    """A JSON file of the model; None where it has none."""
    from transformers.utils.hub import cached_file

    file = cached_file(
        path,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return json.loads(Path(file).read_bytes()) if file else None
