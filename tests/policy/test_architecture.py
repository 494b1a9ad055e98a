"""Architectures that do more than layers and a head: answered as transformers does, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.plans import Chat, Plan, Sampling, Stream
from personalign.policy import architecture
from personalign.policy.loading import Pretrained
from personalign.policy.logprobs import Branches
from personalign.policy.policy import Policy
from personalign.policy.reference import sequence_logprobs
from personalign.policy.tiny import byte_tokenizer
from personalign.types import Message

TEXTS = ("Why?", "Tell me about the sea.", "Hi")
NEW = 12


def model(kind: str, **changes: Any) -> Any:
    tokenizer = byte_tokenizer()
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    }
    ids = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes, **ids, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(3.0 if p.dim() > 1 else 1.0)
    return made


def chat(text: str) -> tuple[Message]:
    return (Message("user", text),)


def theirs(policy: Policy, text: str) -> tuple[list[int], list[float]]:
    """transformers' greedy answer to one prompt, and the log-probability of each token."""
    ids = torch.tensor([policy.encode(chat(text))])
    ends = list(policy.stop_ids)
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": ends, "pad_token_id": policy.pad_id}
    with torch.no_grad():
        out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        logp = policy.model(out).logits[0].float().log_softmax(-1)
    answer = out[0, ids.shape[1] :].tolist()
    return answer, [float(logp[ids.shape[1] - 1 + i, token]) for i, token in enumerate(answer)]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mistral", {"sliding_window": 96}),
        ("gemma3_text", {"sliding_window": 96}),
        ("qwen3", {}),
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.0625}),
    ],
)
def test_batches_answer_and_score_as_transformers_does(kind: str, changes: dict[str, Any]) -> None:
    policy = Policy(model(kind, **changes), byte_tokenizer(), kind)
    architecture.check(policy)
    jobs = [Job(text, Plan((Stream((Chat(chat(text)),)),), sampling=Sampling(max_new_tokens=NEW))) for text in TEXTS]
    made = {r.request: r for r in Decoder(policy, 3).generate(jobs)}
    for text in TEXTS:
        tokens, logprobs = theirs(policy, text)
        assert list(made[text].tokens) == tokens
        assert made[text].logprobs == pytest.approx(logprobs, abs=1e-4)
        branches = Branches(tuple(policy.encode(chat(text))), (tuple(tokens), tuple(tokens[:3])))
        ((whole, start),) = sequence_logprobs(policy, [branches], (), policy.cache, "test")
        assert [whole, start] == pytest.approx([sum(logprobs), sum(logprobs[:3])], abs=1e-3)


@pytest.mark.parametrize(("kind", "key"), [("mistral", "sliding_window"), ("gemma3_text", "sliding_window")])
def test_no_row_is_longer_than_what_a_layer_sees(kind: str, key: str) -> None:
    policy = Policy(model(kind, **{key: 32}), byte_tokenizer(), kind)
    job = Job("r", Plan((Stream((Chat(chat(TEXTS[1])),)),), sampling=Sampling(max_new_tokens=NEW)))
    with pytest.raises(UserError, match=f"context of 32 tokens of {kind}"):
        Decoder(policy, 1).generate([job])
    assert Policy(model("qwen3", sliding_window=32), byte_tokenizer(), "q").context == 256  # full attention alone


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("qwen3_next", {}, r"layers that keep a state of what was read \(linear_attention\)"),
        ("gemma3_text", {"final_logit_softcapping": 0.5}, "changes its logits behind its head"),
    ],
)
def test_what_is_not_known_is_refused(kind: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    model(kind, **changes).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=told):
        Pretrained(name=str(tmp_path / "model"), revision=None).build(tmp_path, "fp32")
