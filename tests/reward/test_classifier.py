"""A sequence classifier as reward, on a tiny random one that is written to disk first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from personalign.contracts import UserError
from personalign.policy.tiny import byte_tokenizer
from personalign.reward.classifier import Classifier
from personalign.types import Message, Request, UserState

TEXTS = ["Yes.", "No, and here is a much longer reason why {request} not."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    path = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=2,
        pad_token_id=2,
        initializer_range=0.3,
    )
    LlamaForSequenceClassification(config).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def make(folder: Path, **changes: Any) -> Classifier:
    values: dict[str, Any] = {
        "name": str(folder),
        "revision": None,
        "output": 1,
        "scale": "logit",
        "template": "Q {request} A {answer}",
        "dimension": "helpful",
        "max_tokens": 256,
        "batch_size": 2,
    }
    return Classifier(**{**values, **changes})


def request(text: str) -> Request:
    return Request(id=text, user="u", messages=(Message("user", text),))


def test_it_is_the_classifier_s_output_on_the_filled_template(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = make(folder).score_all([(request("Why?"), UserState(), TEXTS), (request("Who?"), UserState(), TEXTS[:1])])
    filled = [f"Q Why? A {TEXTS[0]}", f"Q Why? A {TEXTS[1]}", f"Q Who? A {TEXTS[0]}"]
    with torch.no_grad():
        expected = [model(**tokenizer(t, return_tensors="pt")).logits[0, 1].item() for t in filled]
    assert [s.total for row in scores for s in row] == pytest.approx(expected, abs=1e-5)
    assert scores[0][0].dimensions == {"helpful": scores[0][0].total}


def test_a_probability_lies_between_zero_and_one(folder: Path) -> None:
    both = [make(folder, scale="probability", output=i).score(request("Hm"), UserState(), TEXTS) for i in (0, 1)]
    for a, b in zip(*both, strict=True):
        assert 0 < a.total < 1 and a.total + b.total == pytest.approx(1.0)


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 2 outputs: no 7"):
        make(folder, output=7).score(request("x"), UserState(), ["y"])
    with pytest.raises(UserError, match="could not be loaded"):
        make(tmp_path / "nothing").score(request("x"), UserState(), ["y"])
