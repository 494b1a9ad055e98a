"""Context steering: what the user's profile changes in the model's next-token distribution, made stronger or weaker.

score(t) = (1 + c) log p(t | context) - c log p(t | no context): CoS, Linear Alignment and Amulet differ only in c. OPAD
adds what moved the token before.
"""

from __future__ import annotations

import math

from personalign.contracts import Generation, NonNegativeFloat, Placement, PositiveFloat, PositiveInt, UserError
from personalign.generation.prompting import preference_prompt, preference_template, stream
from personalign.plans import Plan, PolicySpec
from personalign.types import Messages, Request, UserState


class ContextSteering(Generation):
    """CoS: the trained policy on the profile's prompt, pushed `strength` times its distance from the plain prompt.

    Strength 0 is the preference prompt, -1 is the plain request; below -1 the preference is opposed. Every token is
    a candidate. Scores are made from raw logits, before any top-p cut: the released code takes them after it, where
    a cut token gives inf - inf. A user without a profile is asked plainly.
    """

    needs = ("state.profile", "model.weights")
    provides = ()
    paper = "arXiv 2405.01768 (CoS); arXiv 2401.11458 (Linear Alignment)"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    strength = "strength"

    def __init__(self, *, strength: float, template: str, placement: Placement) -> None:
        self._strength = strength
        self._template = preference_template(template, placement)
        self._placement = placement

    def render(self, request: Request, state: UserState) -> Messages:
        return preference_prompt(request, state, self._template, self._placement)

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        context = stream(self.render(request, state), 1.0 + self._strength, spec.aligned)
        plain = stream(request.messages, -self._strength, spec.aligned)
        return Plan(tuple(s for s in (context, plain) if s.weight))


class OPAD(ContextSteering):
    """OPAD: log p_t(. | context) + a (d_t + d_{t-1}), d = log p(. | context) - log p(. | no context), a = `strength`.

    Context steering of strength a, to which every token but the first adds what the one before was moved by. Strength 0
    is the preference prompt. The released code, as it is read, lacks the d of its first token when it comes to the
    second; here it is there.
    """

    needs = ("state.profile", "model.weights")
    provides = ()
    paper = "arXiv 2502.14204 (OPAD); its released code"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    strength = "strength"

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        context = stream(self.render(request, state), 1.0 + self._strength, spec.aligned)
        plain = stream(request.messages, -self._strength, spec.aligned)
        return Plan((context, plain), echo=1.0)


class Amulet(ContextSteering):
    """Amulet's online game at every token, in closed form: context steering of strength c_T (`amulet_strength`).

    All of its updates are linear in log-probabilities, so that `iterations` rounds over the vocabulary come to one
    number. With alpha >= lambda_, as in the paper's own setting, that number has no limit: it grows with the
    iterations, which then are what bounds it. Raises UserError where it is beyond floating point.
    """

    needs = ("state.profile", "model.weights")
    provides = ()
    paper = "arXiv 2502.19148; its released code (commit 9d607f0)"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    strength = "alpha"

    def __init__(
        self,
        *,
        iterations: PositiveInt,
        alpha: NonNegativeFloat,
        lambda_: NonNegativeFloat,
        eta: PositiveFloat,
        template: str,
        placement: Placement,
    ) -> None:
        strength = amulet_strength(iterations, alpha, lambda_, eta)
        if not math.isfinite(strength):
            raise UserError(
                f"Amulet's strength is infinite after {iterations} iterations with alpha={alpha:g} and "
                f"lambda_={lambda_:g}: take fewer iterations or a smaller alpha"
            )
        super().__init__(strength=strength, template=template, placement=placement)


def amulet_strength(iterations: int, alpha: float, lambda_: float, eta: float) -> float:
    """c_T of Amulet's follow-the-regularised-leader updates.

    With d = log p(. | context) - log p(. | no context), round t has the utility alpha (1 + c_{t-1}) d and gives
    log pi_t = log p(. | context) + c_t d, where c_0 = 0 and
    c_t = (mean_{s <= t} alpha (1 + c_{s-1}) + c_{t-1} / (eta t)) / (lambda + 1 / (eta t)).
    """
    strength = utility = 0.0
    for t in range(1, iterations + 1):
        utility += alpha * (1.0 + strength)
        strength = (utility / t + strength / (eta * t)) / (lambda_ + 1.0 / (eta * t))
    return strength
