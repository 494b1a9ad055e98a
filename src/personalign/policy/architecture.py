"""What architectures of transformers do beside layers and a head, as far as it changes what a plan means.

Rows of a batch are padded, cut and told by masks which keys they see. So no row may be longer than what every layer
sees, and layers that keep a state instead of keys cannot take part. What is done to the logits behind the head is
done to the states before it, which all readers share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from personalign.contracts import UserError
from personalign.types import Message

if TYPE_CHECKING:
    from personalign.policy.policy import Policy

WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
KEPT = {"full_attention", *WINDOWS}
ALIKE = 0.015  # of the largest logit: more than bf16 rounds, less than a cap changes


def context(config: Any) -> int:
    """Longest prompt plus answer, in tokens: within its window, a layer that has one sees all."""
    kinds = getattr(config, "layer_types", None)
    windows = [getattr(config, key, None) for kind, key in WINDOWS.items() if kinds is None or kind in kinds]
    return int(min([config.max_position_embeddings, *filter(None, windows)]))


def scale(config: Any) -> float:
    """What multiplies the logits behind the head (Granite, Cohere)."""
    factor, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    return float(factor or 1.0) / float(divisor or 1.0)


def check(policy: Policy) -> None:
    """Raise UserError where the model keeps states, or its logits are not what its head makes of its last states."""
    model, config = policy.model, policy.model.config.get_text_config()
    states = sorted({*(getattr(config, "layer_types", None) or ())} - KEPT)
    if states or getattr(model, "_is_stateful", False):
        raise UserError(
            f"{policy.label} has layers that keep a state of what was read ({', '.join(states) or config.model_type}): "
            "only models whose layers all attend to keys can be decoded in batches here (Llama, Qwen, Mistral, ...)"
        )
    ids = torch.tensor([policy.encode((Message("user", "a"),))[-8:]], device=policy.device)
    with torch.no_grad():
        wanted = model(ids).logits.float()
        found = policy.logits(policy.hidden(input_ids=ids))
    if (found - wanted).abs().max() > ALIKE * wanted.abs().max():
        raise UserError(
            f"{policy.label} ({config.model_type}) changes its logits behind its head in a way that is not known here, "
            "as with a cap: its probabilities would be wrong"
        )
