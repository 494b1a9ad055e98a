"""PAD: the plans' identities, and the scores of plans against the formulas of the paper and of its code."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalign.contracts import UserError
from personalign.generation.pad import Pad, PadScalar
from personalign.generation.plain import Plain
from personalign.plans import Candidates, Chat, Plan, PolicySpec, Stream
from personalign.types import Message, Request, Stance, UserState

Row = npt.NDArray[np.float64]
ASK = Request(id="q", user="ada", messages=(Message("user", "What is tea?"),))
PLAIN, WISH = ASK.messages, (Message("user", "Wish: poems\n\nWhat is tea?"),)
NAMES = ("warmth", "length", "poetry")
FEATURES = {name: ((f"pad_{name}", 1.0),) for name in NAMES}
ALIGNED = (("dpo", 1.0),)
SPEC = PolicySpec(aligned=ALIGNED, features=FEATURES, heads=("value",))
PROMPT = {"template": "Wish: {profile}", "placement": "user"}
FORMS = [(r, sees) for r in ("backbone", "base", "none") for sees in (False, True)]
BETAS = st.floats(0, 3)
WEIGHTS = st.lists(st.floats(-1, 1), min_size=3, max_size=3)


def state_of(weights: list[float], profile: str | None = "poems") -> UserState:
    return UserState(profile=profile, stance=Stance(NAMES[: len(weights)], tuple(weights)))


def pad(beta: float, reference: str = "backbone", sees: bool = False, k: int = 5, every: int = 1) -> Pad:
    values: dict[str, Any] = {"beta": beta, "reference": reference, "base_sees_preference": sees}
    return Pad(**values, top_k=k, score_every=every, **PROMPT)  # type: ignore[arg-type]


def scalar(
    beta: float, reference: str = "backbone", sees: bool = False, k: int = 5, head: str | None = None
) -> PadScalar:
    values: dict[str, Any] = {"beta": beta, "reference": reference, "base_sees_preference": sees}
    return PadScalar(**values, top_k=k, score_every=1, head=head, **PROMPT)  # type: ignore[arg-type]


def coefficients(plan: Plan) -> list[float]:
    return [s.weight for s in plan.streams]


# --- identities of plans ---------------------------------------------------------------------------


@pytest.mark.parametrize("part", [pad(0.0), scalar(0.0), scalar(0.0, "base"), pad(0.0, "none")])
def test_beta_zero_is_the_base_alone(part):
    plan = part.plan(ASK, state_of([1.0, -1.0, 0.5]), SPEC).simplified()
    assert plan.streams == Plain().plan(ASK, UserState(), PolicySpec()).streams
    assert plan.candidates == Candidates("top_k", k=5)


def test_beta_one_against_the_base_is_the_guide_alone_on_the_base_candidates():
    plan = scalar(1.0, "base", sees=True).plan(ASK, state_of([]), SPEC).simplified()
    base, guide = Stream((Chat(WISH),), 0.0), Stream((Chat(WISH),), 1.0, ALIGNED)
    assert plan.streams == (base, guide)
    assert plan.candidates.stream == 0


@pytest.mark.parametrize(("reference", "sees"), FORMS)
def test_one_feature_of_weight_one_has_the_scalar_forms_coefficients(reference, sees):
    state = state_of([1.0])
    one = pad(0.7, reference, sees).plan(ASK, state, SPEC)
    assert coefficients(one) == coefficients(scalar(0.7, reference, sees).plan(ASK, state, SPEC))


def test_weights_on_the_simplex_are_mod_around_the_reference():
    plan = pad(1.0).plan(ASK, state_of([0.25, 0.5, 0.25]), SPEC).simplified()
    mixed = tuple(Stream((Chat(PLAIN),), w, FEATURES[n]) for n, w in zip(NAMES, (0.25, 0.5, 0.25), strict=True))
    assert plan.streams == (Stream((Chat(PLAIN),), 0.0), *mixed)


def test_the_guide_as_its_own_reference_is_the_base():
    plan = scalar(1.7).plan(ASK, state_of([]), PolicySpec()).simplified()
    assert plan.streams == (Stream((Chat(PLAIN),), 1.0),)


def test_with_one_backbone_the_released_form_is_the_paper_form_whose_base_sees_the_preference():
    state = state_of([])
    released = scalar(0.8, "base", sees=True).plan(ASK, state, SPEC).simplified()
    assert released == scalar(0.8, "backbone", sees=True).plan(ASK, state, SPEC).simplified()
    assert coefficients(released) == pytest.approx([1 - 0.8, 0.8])


@given(BETAS, WEIGHTS)
def test_coefficients_sum_to_one(beta: float, weights: list[float]):
    state = state_of(weights)
    for reference, sees in FORMS:
        for part, gain in ((pad(beta, reference, sees), sum(weights)), (scalar(beta, reference, sees), 1.0)):
            expected = 1.0 + beta * gain if reference == "none" else 1.0
            plan = part.plan(ASK, state, SPEC)
            assert sum(coefficients(plan)) == pytest.approx(expected)
            assert sum(coefficients(plan.simplified())) == pytest.approx(expected)


# --- what the streams read -------------------------------------------------------------------------


def test_features_read_the_plain_prompt_with_signed_weights():
    plan = pad(2.0, every=3).plan(ASK, state_of([0.5, 0.0, -1.0]), SPEC)
    chat = (Chat(PLAIN),)
    guides = (Stream(chat, 1.0, FEATURES["warmth"]), Stream(chat, -2.0, FEATURES["poetry"]))
    assert plan.streams == (Stream(chat), *guides, Stream(chat, 1.0))
    assert plan.score_every == 3


@pytest.mark.parametrize(("reference", "anchor"), [("backbone", PLAIN), ("base", WISH)])
def test_the_base_may_see_the_preference(reference, anchor):
    plan = pad(2.0, reference, sees=True).plan(ASK, state_of([1.0]), SPEC)
    assert [s.prompt for s in plan.streams] == [(Chat(WISH),), (Chat(PLAIN),), (Chat(anchor),)]


@pytest.mark.parametrize(("reference", "anchor"), [("backbone", WISH), ("base", PLAIN)])
def test_the_scalar_guide_reads_the_preference_prompt(reference, anchor):
    plan = scalar(2.0, reference, head="value").plan(ASK, state_of([]), SPEC)
    base, guide = Stream((Chat(PLAIN),)), Stream((Chat(WISH),), 2.0, ALIGNED, "value")
    assert plan.streams == (base, guide, Stream((Chat(anchor),), -2.0))


def test_alignment_trains_features_on_the_plain_and_the_scalar_guide_on_the_preference_prompt():
    assert pad(1.0, sees=True).render(ASK, state_of([])) == PLAIN
    assert scalar(1.0).render(ASK, state_of([])) == WISH


def test_without_a_stance_the_base_answers():
    assert pad(1.0).plan(ASK, UserState(), SPEC).streams == (Stream((Chat(PLAIN),)),)


def test_a_dimension_without_a_feature_is_named_unless_it_weighs_nothing():
    spec = PolicySpec(features={"warmth": FEATURES["warmth"], "length": FEATURES["length"]})
    with pytest.raises(UserError, match=r"stance on 'poetry', but no feature .* there are length, warmth"):
        pad(1.0).plan(ASK, state_of([1.0, 0.0, 0.1]), spec)
    assert len(pad(1.0).plan(ASK, state_of([1.0, 1.0, 0.0]), spec).streams) == 4


def test_a_head_that_the_policy_lacks_is_named():
    with pytest.raises(UserError, match="no head 'pooled': it has value"):
        scalar(1.0, head="pooled").plan(ASK, state_of([]), SPEC)


# --- scores of plans against the formulas ----------------------------------------------------------


def log_softmax(z: Row) -> Row:
    return np.asarray(z - np.log(np.exp(z - z.max()).sum()) - z.max())


def table(seed: int) -> Callable[[Stream], Row]:
    """Random logits over 40 tokens for whatever a stream reads."""

    def logits(stream: Stream) -> Row:
        return np.random.default_rng([seed, zlib.crc32(repr(stream.source).encode())]).normal(size=40) * 3

    return logits


def scored(plan: Plan, logits: Callable[[Stream], Row]) -> tuple[Row, npt.NDArray[np.int64]]:
    """The score of the plan's candidates, by the decoder's kernel, and the candidates."""
    candidates = np.argsort(logits(plan.streams[plan.candidates.stream]))[::-1][: plan.candidates.k]
    total = sum((s.weight * log_softmax(logits(s)) for s in plan.streams), np.zeros(40))
    return total[candidates], candidates


SEEDS = st.integers(0, 2**32 - 1)
GUIDE = Stream((Chat(WISH),), deltas=ALIGNED)


def ratios(logits: Callable[[Stream], Row], guides: list[Stream], reference: Stream) -> Row:
    """phi_k = log pihat_k - log pihat_ref over the vocabulary, [K, V]."""
    anchor = log_softmax(logits(reference))
    return np.stack([log_softmax(logits(guide)) - anchor for guide in guides])


@given(SEEDS, BETAS, WEIGHTS, st.integers(1, 40))
def test_k_features_score_as_equation_13(seed: int, beta: float, weights: list[float], k: int):
    logits = table(seed)
    plan = pad(beta, k=k).plan(ASK, state_of(weights), SPEC)
    base = Stream((Chat(PLAIN),))
    phi = ratios(logits, [Stream((Chat(PLAIN),), deltas=FEATURES[n]) for n in NAMES], base)
    literal = beta * np.array(weights) @ phi + log_softmax(logits(base))
    same(plan, logits, lambda candidates: literal[candidates])


@given(SEEDS, BETAS, st.integers(1, 40))
def test_the_scalar_form_scores_as_equation_13(seed: int, beta: float, k: int):
    logits = table(seed)
    phi = ratios(logits, [GUIDE], Stream((Chat(WISH),)))[0]
    literal = beta * phi + log_softmax(logits(Stream((Chat(PLAIN),))))
    same(scalar(beta, k=k).plan(ASK, state_of([]), SPEC), logits, lambda candidates: literal[candidates])


@given(SEEDS, BETAS, st.integers(1, 40))
def test_the_released_form_chooses_as_the_released_code(seed: int, beta: float, k: int):
    logits = table(seed)
    z, guide = logits(Stream((Chat(WISH),))), logits(GUIDE)

    def code(candidates: npt.NDArray[np.int64]) -> Row:
        reward = log_softmax(guide[candidates]) - log_softmax(z[candidates])
        return np.asarray(beta * reward + z[candidates])

    same(scalar(beta, "base", sees=True, k=k).plan(ASK, state_of([]), SPEC), logits, code)


def same(plan: Plan, logits: Callable[[Stream], Row], literal: Callable[[npt.NDArray[np.int64]], Row]) -> None:
    """Plan and simplified plan choose the formula's token; their scores differ from it by a constant."""
    for equal in (plan, plan.simplified()):
        scores, candidates = scored(equal, logits)
        expected = literal(candidates)
        assert scores - scores[0] == pytest.approx(expected - expected[0], abs=1e-8)
        gaps = np.sort(expected)
        if len(gaps) == 1 or gaps[-1] - gaps[-2] > 1e-8:
            assert scores.argmax() == expected.argmax()


@given(SEEDS, BETAS)
def test_a_single_candidate_is_the_bases_greedy_choice(seed: int, beta: float):
    logits = table(seed)
    plan = scalar(beta, k=1).plan(ASK, state_of([]), SPEC)
    assert scored(plan, logits)[1].tolist() == [logits(Stream((Chat(PLAIN),))).argmax()]


def test_the_shipped_forms_have_the_coefficients_of_their_source(make, ask, state, spec):
    assert coefficients(make("pad").plan(ask, state, spec)) == [1.0, 0.5, -1.0, 0.5]
    assert coefficients(make("pad_scalar").plan(ask, state, spec)) == [1.0, 1.0, -1.0]
    released = make("pad_released").plan(ask, state, spec).simplified()
    assert coefficients(released) == pytest.approx([0.2, 0.8])
    assert {s.prompt for s in released.streams} == {(Chat(make("pad_released").render(ask, state)),)}
    assert make("pad_scalar").render(ask, state) == make("preference_prompt").render(ask, state)
