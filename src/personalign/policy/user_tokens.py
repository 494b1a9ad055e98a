"""Soft tokens of users (P-RLHF, arXiv 2402.05133): a table with a row for each known user, and one for all others."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from personalign.plans import Args
from personalign.policy.soft import SoftHead


class UserTokens(SoftHead):
    """What the user models share: which row is whose. Row 0 is the generic user: anyone unknown, and () for nobody."""

    def __init__(self, users: Sequence[str], tokens: int) -> None:
        super().__init__()
        self.users, self.tokens = tuple(users), tokens
        self._row: dict[object, int] = {user: row for row, user in enumerate(self.users, start=1)}

    def rows(self, asked: Sequence[Args]) -> list[int]:
        return [self._row.get(args[0], 0) if args else 0 for args in asked]

    def described(self) -> dict[str, str]:
        """What a file says of it beside its tensors: whose the rows are."""
        return {"users": json.dumps(list(self.users))}


class IndividualTokens(UserTokens):
    """e_u = e_0 + o_u with the user's own o_u, and e_0 for anyone unknown (example 2 there).

    Args:
        users: the known ones.
        start: e_0, then each user's o_u at first: [1 + users, tokens, width].
    """

    def __init__(self, users: Sequence[str], start: Tensor) -> None:
        super().__init__(users, start.shape[1])
        self.table = nn.Parameter(start)

    def forward(self, asked: Sequence[Args]) -> Tensor:
        """Users -> [users, tokens, width]; a user's row gets no gradient from what is asked about others."""
        rows = torch.tensor(self.rows(asked), device=self.table.device)
        return self.table[0] + self.table[rows] * (rows > 0)[:, None, None]


class ClusterTokens(UserTokens):
    """e_u = softmax(w_u) over the clusters' embeddings; anyone unknown has the generic w_0 (example 3 there).

    Args:
        users: the known ones.
        weights: w_0, then each user's w_u at first: [1 + users, clusters].
        start: the clusters' embeddings at first: [clusters, tokens, width].
    """

    def __init__(self, users: Sequence[str], weights: Tensor, start: Tensor) -> None:
        super().__init__(users, start.shape[1])
        self.weights, self.clusters = nn.Parameter(weights), nn.Parameter(start)

    def forward(self, asked: Sequence[Args]) -> Tensor:
        """Users -> [users, tokens, width]."""
        mixture = self.weights[self.rows(asked)].softmax(-1)
        return torch.einsum("uc,ctw->utw", mixture, self.clusters)
