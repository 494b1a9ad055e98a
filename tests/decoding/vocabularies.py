"""Small vocabularies that spell bytes, and random models that read them."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch

from personalign.policy.policy import Policy
from personalign.policy.tiny import SPECIALS, TEMPLATE


def tokenizer(alphabet: str, merges: list[tuple[str, str]], order: list[int] | None = None) -> Any:
    """A byte-level BPE of some letters and merges; its special tokens first, or all tokens in another order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIALS, *alphabet, *("".join(pair) for pair in merges)]
    numbers = order or list(range(len(names)))
    core = Tokenizer(models.BPE(vocab=dict(zip(names, numbers, strict=True)), merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIALS))
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")  # type: ignore[no-untyped-call]
    made.chat_template = TEMPLATE
    return made


def fallback(made: Any, kind: str) -> Any:
    """The same tokens under the same ids, written as transformers' LlamaTokenizer or GemmaTokenizer writes them:
    characters, a mark for the space, and <0x..> for a byte that is no character. `made` merges no part of one."""
    import transformers
    from tokenizers import pre_tokenizers

    from personalign.policy.scripts import letters

    described = json.loads(made.backend_tokenizer.to_str())
    numbers = {letter: byte for byte, letter in enumerate(letters())}

    def written(token: str) -> str:
        if token in SPECIALS:
            return token
        text = bytes(numbers[c] for c in token)
        return f"<0x{text[0]:02X}>" if len(text) == 1 and text[0] > 127 else text.decode().replace(" ", "\u2581")

    vocab = {written(token): i for token, i in described["model"]["vocab"].items()}
    merges = [(written(a), written(b)) for a, b in described["model"]["merges"]]
    first, _, last = SPECIALS
    other = getattr(transformers, kind)(
        vocab=vocab, merges=merges, unk_token=first, bos_token=first, eos_token=last, pad_token=last, mask_token=first
    )
    other.add_special_tokens({"additional_special_tokens": [SPECIALS[1]]})
    if kind == "GemmaTokenizer":  # merges lie within words there, and what is unknown has a token
        other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("\x00", "isolated")
        other.backend_tokenizer.model.unk_token = None
    other.chat_template = TEMPLATE
    assert len(other) == len(made)
    return other


def model(size: int, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def policy(made: Any, seed: int) -> Policy:
    return Policy(model(len(made), seed), made, f"random-{seed}")


def copied(source: Policy) -> Any:
    """Another model with the same weights; `source` has no adapters."""
    made = type(source.model)(copy.deepcopy(source.model.config)).to(source.dtype).eval()
    made.load_state_dict(source.model.state_dict())
    made.generation_config = copy.deepcopy(source.model.generation_config)
    return made


def permuted(source: Policy, seed: int) -> Policy:
    """The same model and tokens under other ids."""
    from tokenizers import Tokenizer

    size = source.embedding.num_embeddings
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()  # old id -> new id
    described = json.loads(source.tokenizer.backend_tokenizer.to_str())
    described["model"]["vocab"] = {token: order[i] for token, i in described["model"]["vocab"].items()}
    for added in described["added_tokens"]:
        added["id"] = order[added["id"]]
    described["added_tokens"].sort(key=lambda added: added["id"])
    tokenizer = type(source.tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        eos_token=source.tokenizer.eos_token,
        pad_token=source.tokenizer.pad_token,
    )
    tokenizer.chat_template = source.tokenizer.chat_template
    twin = copied(source)
    with torch.no_grad():
        twin.get_input_embeddings().weight[order] = source.embedding.weight.clone()
        if not twin.config.tie_word_embeddings:
            twin.get_output_embeddings().weight[order] = source.model.get_output_embeddings().weight.clone()
    for config in (twin.config, twin.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            old = getattr(config, name, None)
            if isinstance(old, int):
                setattr(config, name, order[old])
    return Policy(twin, tokenizer, f"{source.label}-permuted")


def shortened(source: Policy, count: int) -> Policy:
    """The same model without its last `count` merges, and without the tokens that only these made."""
    from tokenizers import Tokenizer

    described = json.loads(source.tokenizer.backend_tokenizer.to_str())
    merges = described["model"]["merges"]
    kept = {"".join(pair) for pair in merges[:-count]}
    gone = {"".join(pair) for pair in merges[-count:]} - kept
    rows = sorted(i for token, i in described["model"]["vocab"].items() if token not in gone)
    numbers = {old: new for new, old in enumerate(rows)}
    vocab = described["model"]["vocab"].items()
    described["model"]["vocab"] = {token: numbers[i] for token, i in vocab if token not in gone}
    described["model"]["merges"] = merges[:-count]
    for added in described["added_tokens"]:
        added["id"] = numbers[added["id"]]
    tokenizer = type(source.tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        eos_token=source.tokenizer.eos_token,
        pad_token=source.tokenizer.pad_token,
    )
    tokenizer.chat_template = source.tokenizer.chat_template
    less = copied(source)
    weight = source.embedding.weight.detach()[rows].clone()
    less.resize_token_embeddings(len(rows), mean_resizing=False)
    with torch.no_grad():
        less.get_input_embeddings().weight.copy_(weight)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        old = getattr(less.generation_config, name, None)
        if isinstance(old, int):
            setattr(less.generation_config, name, numbers[old])
    return Policy(less, tokenizer, f"{source.label}-less-{count}")
