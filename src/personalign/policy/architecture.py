"""What architectures of transformers do beside layers and a head, as far as it changes what a plan means.

Rows of a batch are padded, cut and told by masks which keys they see. So no row may be longer than what every layer
sees, and layers that keep a state instead of keys cannot take part. What is done to the logits behind the head is
done to the states before it, which all readers share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
    factor, divisor = (getattr(config, key, None) for key in ("logit_scale", "logits_scaling"))
    told = [value if isinstance(value, (int, float)) and value else 1.0 for value in (factor, divisor)]
    return told[0] / told[1]


def check(policy: Policy) -> None:
    """Raise UserError where the model keeps states, or its logits are not what its head makes of its last states."""
    model, config = policy.model, policy.model.config.get_text_config()
    kept = sorted({*(getattr(config, "layer_types", None) or ())} - KEPT)
    if kept or getattr(model, "_is_stateful", False):
        raise UserError(
            f"{policy.label} has layers that keep a state of what was read ({', '.join(kept) or config.model_type}): "
            "only models whose layers all attend to keys can be decoded in batches here (Llama, Qwen, Mistral, ...)"
        )
    states: list[Tensor] = []
    hook = model.get_decoder().register_forward_hook(lambda _, __, out: states.append(out.last_hidden_state))
    # Nothing here has gradients, but with them switched off the CPU's weights would be packed, before adapters come.
    wanted = model(torch.tensor([policy.encode((Message("user", "a"),))[-2:]], device=policy.device)).logits.float()
    hook.remove()
    found = policy.logits(policy.scaled(states[0]))
    if (found - wanted).abs().max() > ALIKE * wanted.abs().max():
        raise UserError(
            f"{policy.label} ({config.model_type}) changes its logits behind its head in a way that is not known here, "
            "as with a cap: its probabilities would be wrong"
        )
