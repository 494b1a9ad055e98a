"""Soft tokens that a small network makes of the vectors of a user's past texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from personalign.plans import Args
from personalign.policy.soft import SoftHead

Form = Literal["attention", "mean"]


class HistoryTokens(SoftHead):
    """The instruction I, then the user's own tokens, of the arguments (q, h_1, ..., h_n): the request's vector and the
    history's. Their f is a network of two layers, GELU between; users need not be known.

    attention: sum_i w_i f(h_i), w = softmax_i(h_i . W q) (PPlug, arXiv 2409.11901; its released code trains the encoder
    of q, in whose place W learns here, the identity at first).
    mean: f(m), m the mean of the h_i brought to unit length: one vector a user, whatever is asked (E2P, arXiv
    2505.17051).

    Args:
        form: as above.
        encoded: width of the vectors.
        hidden: width of f's inner layer.
        tokens: the user's own.
        instruction: I at first, the same for everybody: [any, width].
        size: root mean square of the numbers of a token's embedding, in which f's outputs are measured.
    """

    size: Tensor

    def __init__(self, form: Form, encoded: int, hidden: int, tokens: int, instruction: Tensor, size: float) -> None:
        super().__init__()
        self.form, self.own, self.tokens = form, tokens, len(instruction) + tokens
        self.instruction = nn.Parameter(instruction)
        self.network = nn.Sequential(
            nn.Linear(encoded, hidden), nn.GELU(), nn.Linear(hidden, tokens * instruction.shape[1])
        )
        self.query = nn.Parameter(torch.eye(encoded)) if form == "attention" else None
        self.register_buffer("size", torch.tensor(size))

    def described(self) -> dict[str, str]:
        """What a file says of it beside its tensors."""
        return {"form": self.form}

    def forward(self, asked: Sequence[Args]) -> Tensor:
        """Requests' vectors and histories, each with one text or more -> [requests, tokens, width]."""
        query, history, there = self._tensors(asked)
        if self.query is None:
            own = self._f(F.normalize(history.sum(1) / there.sum(1, keepdim=True), dim=-1))
        else:
            scores = torch.einsum("rtw,rw->rt", history, query @ self.query.T)
            weights = scores.masked_fill(~there, -torch.inf).softmax(-1)
            own = torch.einsum("rt,rtsw->rsw", weights, self._f(history))
        return torch.cat([self.instruction.expand(len(asked), -1, -1), own], dim=1)

    def _f(self, vectors: Tensor) -> Tensor:
        """Unit vectors [..., encoded] -> [..., tokens, width]; their numbers are brought to order one first."""
        made: Tensor = self.network(vectors * vectors.shape[-1] ** 0.5) * self.size
        return made.view(*vectors.shape[:-1], self.own, -1)

    def _tensors(self, asked: Sequence[Args]) -> tuple[Tensor, Tensor, Tensor]:
        """q [requests, encoded], h [requests, texts, encoded] with zeros behind, and where there is a text."""
        device = self.instruction.device
        rows = [torch.tensor(args, device=device, dtype=self.instruction.dtype) for args in asked]
        history = nn.utils.rnn.pad_sequence([row[1:] for row in rows], batch_first=True)
        counts = torch.tensor([len(row) - 1 for row in rows], device=device)
        return (
            torch.stack([row[0] for row in rows]),
            history,
            torch.arange(history.shape[1], device=device) < counts[:, None],
        )
