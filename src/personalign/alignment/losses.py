"""The losses of alignment as pure functions of log-probabilities in nats."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def margins(policy: Tensor, reference: Tensor) -> Tensor:
    """log pi/pi_ref (chosen) - log pi/pi_ref (rejected) of [..., 2] sequence log-probs, chosen first: [...]."""
    ratios = policy - reference
    return ratios[..., 0] - ratios[..., 1]


def dpo_loss(margins: Tensor, beta: float) -> Tensor:
    """-log sigma(beta m) of each margin (DPO, arXiv 2305.18290, eq. 7); log 2 where the policy is the reference."""
    return -F.logsigmoid(beta * margins)


def pad_loss(margins: Tensor, weights: Tensor, beta: float) -> Tensor:
    """-log sigma(w^T beta m) of feature margins [..., K] and preference weights [..., K] or [K]: [...].

    PAD, arXiv 2410.04070, eq. 9. K = 1 and w = 1 is DPO; a one-hot w trains one feature alone.
    """
    return dpo_loss((weights * margins).sum(-1), beta)


def modpo_loss(margins: Tensor, others: Tensor, own: Tensor, beta: float) -> Tensor:
    """-log sigma((beta m - others) / own) of each pair, [...] all: DPO of one objective with a margin (MODPO, arXiv
    2310.03708, section 3; its released code's rho(chosen) - rho(rejected)).

    `own` is the weight w_k > 0 of the objective by which the pair is ordered, `others` what the pair's two answers
    differ by in all other objectives, sum_{j != k} w_j (r_j(chosen) - r_j(rejected)), in nats. Its minimum is the
    policy of reward sum_j w_j r_j. K = 1 and w = 1 is DPO.
    """
    return -F.logsigmoid((beta * margins - others) / own)


def sft_loss(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Mean negative log-probability of a token, for each answer: sums [...] over lengths [...] in tokens.

    Every answer counts alike, so that the mean over a batch does not depend on how it is cut up.
    """
    return -logprobs / lengths.clamp(min=1)


def leave_one_out(returns: Tensor) -> Tensor:
    """R_i - mean of the other R_j, of the k >= 2 answers to a prompt in [..., k] (RLOO, arXiv 2402.14740).

    The baseline of an answer does not depend on it, so that the gradient's mean is that of REINFORCE.
    """
    k = returns.shape[-1]
    return (returns - returns.mean(-1, keepdim=True)) * (k / (k - 1))


def reinforce_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A pi / sg(pi) of the log-probs of answers that this policy drew: its value is -A, its gradient -A grad log pi.

    REINFORCE with a whole answer as one action (arXiv 2402.14740): [...].
    """
    return -advantages * (logprobs - logprobs.detach()).exp()


def bradley_terry_loss(rewards: Tensor) -> Tensor:
    """-log sigma(r(chosen) - r(rejected)) of rewards [..., 2], chosen first: [...] (Bradley and Terry 1952)."""
    return -F.logsigmoid(rewards[..., 0] - rewards[..., 1])


def td_lambda(values: Tensor, rewards: Tensor, lengths: Tensor, trace: float) -> Tensor:
    """What TD(lambda) draws the values of an answer's beginnings to, without discount (Sutton 1988): [n, time, K].

    Of answers of so many tokens as `lengths` [n] say, with values [n, time, K] of y_<=1, y_<=2 and so on, and rewards
    [n, K] of the whole: G_T = r and G_t = (1 - lambda) V_(t+1) + lambda G_(t+1). lambda 1 is the reward everywhere.
    Behind an answer's end stands its reward.
    """
    targets = torch.empty_like(values)
    for t in reversed(range(values.shape[1])):
        last = (t + 1 >= lengths)[:, None]
        following = values[:, min(t + 1, values.shape[1] - 1)]
        ahead = targets[:, min(t + 1, values.shape[1] - 1)]
        targets[:, t] = torch.where(last, rewards, (1 - trace) * following + trace * ahead)
    return targets


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag(exp(log_variance))) || N(0, I)) of [..., d] in nats: [...]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(-1)
