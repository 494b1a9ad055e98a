"""How the base policy is made: a hub or local model, the embedded one, or a random tiny one; or who answers instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack

import torch
from safetensors import SafetensorError

from personalign.contracts import Name, Part, PositiveInt, Seed, UserError
from personalign.policy import architecture
from personalign.policy.assets import model_dir
from personalign.policy.policy import Policy
from personalign.policy.tiny import byte_tokenizer, random_llama
from personalign.runtime.endpoint import Endpoint, EndpointKeys

Precision = Literal["bf16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Pretrained(Part):
    """A causal language model with its tokenizer: the embedded model, a local folder or a hub name.

    Only safetensors are read and no code that comes with a model is run.
    """

    provides: ClassVar[tuple[str, ...]] = ("model", "model.weights")

    def __init__(self, *, name: Name, revision: str | None) -> None:
        self.name = name
        self.revision = revision

    def build(self, cache: Path, precision: Precision) -> Policy:
        """Load at `precision`. Raises UserError when there is no such model, it has no whole safetensors, or does what
        plans do not know of."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = str(model_dir(self.name, cache))
        options: dict[str, Any] = {"trust_remote_code": False, "revision": self.revision}
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=DTYPES[precision], use_safetensors=True, attn_implementation="sdpa", **options
            )
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".:")
            raise UserError(
                f"model {self.name!r} could not be loaded: {reason}; name a model of the hub, or a folder that is "
                "there and holds configuration, tokenizer and whole safetensors"
            ) from error
        policy = Policy(model, tokenizer, self.name, cache)
        architecture.check(policy)
        return policy


class Remote(Part):
    """A model behind an OpenAI-compatible endpoint: it answers chats, and nothing else can be asked of it.

    What needs its weights or its log-probabilities (stages, several streams, rewards that read the policy, the
    perplexity of answers) is refused before anything runs, or left out.
    """

    provides: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, **endpoint: Unpack[EndpointKeys]) -> None:
        self.endpoint = Endpoint(who="endpoint", **endpoint)


class Tiny(Part):
    """A random byte-level Llama: nothing to fetch, nothing to expect of its answers. Raises UserError where heads do
    not fit the width, or key/value heads not the heads."""

    provides: ClassVar[tuple[str, ...]] = ("model", "model.weights")

    def __init__(
        self,
        *,
        hidden: PositiveInt,
        layers: PositiveInt,
        heads: PositiveInt,
        kv_heads: PositiveInt,
        context: PositiveInt,
        seed: Seed,
    ) -> None:
        if hidden % (2 * heads):  # every head has pairs of features, which positions turn
            raise UserError(f"model=tiny: heads={heads} must divide hidden={hidden} into parts of even width")
        if heads % kv_heads:
            raise UserError(f"model=tiny: kv_heads={kv_heads} must divide heads={heads}")
        self.sizes = (hidden, layers, heads, kv_heads, context, seed)

    def build(self, cache: Path, precision: Precision) -> Policy:
        model = random_llama(*self.sizes).to(DTYPES[precision])
        return Policy(model, byte_tokenizer(), "tiny-" + "-".join(map(str, self.sizes)), cache)
