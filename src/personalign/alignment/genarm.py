"""GenARM: language models as rewards of single tokens, one a dimension."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, zeros

from personalign.alignment.pad import Pad
from personalign.alignment.preference import Rows
from personalign.policy.policy import Policy


class GenARM(Pad):
    """Autoregressive reward models r_k(x, y) = beta sum_t log pi_k(y_t | x, y_<t), one adapter a dimension, trained by
    -log sigma(beta (log pi_k(chosen) - log pi_k(rejected))) on pairs that are relabelled by it (arXiv 2410.08193).

    Unlike a feature of PAD, and unlike DPO, no reference is divided by: a reward model is free to leave the base. All
    are trained side by side in one forward pass. Generation `genarm` adds them to the base.
    """

    needs = ("pairs", "labels")
    provides = ("policy.features",)
    paper = "arXiv 2410.08193 (autoregressive reward model, its training)"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    stage = "genarm"

    def reference(self, policy: Policy, rows: Rows) -> Mapping[str, Tensor]:
        return {dimension: zeros(len(some), 2) for dimension, some in rows.items()}
