"""The posterior of lambda: against the formula in float64, against a lambda that is known, and what it may read."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as brute
from keeping import read_once_and_forgotten
from omegaconf import OmegaConf

from personalign.composition.build import build
from personalign.composition.home import home
from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.generation.multi_cos import MultiCoS
from personalign.memory.cos_lambda import CosLambda
from personalign.memory.steered import steered_logprobs
from personalign.plans import PolicySpec, Sampling, Stream, Tokens
from personalign.policy.policy import Policy
from personalign.types import Event, Message, Request, Snippet, UserState

GRID = [-1.0, 0.0, 1.0, 2.0, 3.0]
SAID = ("I like poems about the sea!", "Never use long words.")


def memory(cache: Path, **changes: Any) -> CosLambda:
    whole = OmegaConf.create(
        {"paths": {"cache": str(cache)}, "prompts": OmegaConf.load(home() / "conf/config.yaml").prompts}
    )
    whole["part"] = OmegaConf.load(home() / "conf/memory/cos_lambda.yaml")
    whole.part.update({"grid": GRID, "k": 2, **changes})
    made: CosLambda = build(whole.part)
    return made


def event(number: int, kind: str, user: str = "ada", **payload: str) -> Event:
    return Event(id=str(number), user=user, time=float(number), kind=kind, payload=payload)  # type: ignore[arg-type]


HISTORY = [
    event(0, "statement", text=" ".join(SAID)),
    event(1, "choice", prompt="What is rain?", chosen="Sky tears, of the sea.", rejected="Water."),
    event(2, "text", text="Waves and salt and foam."),
]
ASKED = Request(id="q", user="ada", messages=(Message("user", "What is tea?"),))


def filled(made: CosLambda, events: list[Event] = HISTORY) -> CosLambda:
    for one in events:
        made.observe(one)
    return made


def by_hand(policy: Policy, prompts: list[str], text: str, points: list[tuple[float, ...]]) -> np.ndarray[Any, Any]:
    """log p(text | lambda) at every point, token by token, in float64 and over the whole vocabulary."""
    twin, answer = brute.exact(policy), policy.encode_answer(text)[:-1]
    streams = [Stream((Tokens(tuple(policy.encode((Message("user", said),)))),)) for said in prompts]
    total = np.zeros(len(points))
    for t, token in enumerate(answer):
        plain, *others = (brute.logprobs(twin, one, answer[:t]) for one in streams)
        for i, point in enumerate(points):
            mixed = (1 - sum(point)) * plain + sum(by * own for by, own in zip(point, others, strict=True))
            total[i] += brute.log_softmax(mixed)[token]
    return total


def prompts(asked: str) -> list[str]:
    return [asked, *(f"{asked}\n\n{said} Please answer that way." for said in SAID)]


def test_the_weights_are_the_posterior_mean_by_direct_computation(tiny: Policy, tmp_path: Path) -> None:
    points = list(itertools.product(GRID, repeat=2))
    evidence = [("What is rain?", "Sky tears, of the sea."), ("Write something.", "Waves and salt and foam.")]
    total = sum(by_hand(tiny, prompts(asked), text, points) for asked, text in evidence)
    mass = np.exp(total - np.max(total))
    expected = mass @ np.array(points) / mass.sum()
    state = filled(memory(tmp_path)).recall(ASKED, tiny)
    assert [one.text for one in state.snippets] == list(SAID)
    assert [one.weight for one in state.snippets] == pytest.approx(expected, abs=1e-3)
    assert np.ptp(total) > 1, "the evidence must tell"


@pytest.mark.parametrize("planted", [(2.0,), (0.0,), (-1.0, 2.0)])
def test_a_planted_lambda_is_recovered(tiny: Policy, planted: tuple[float, ...]) -> None:
    """Texts drawn at a lambda: it is the likeliest point by far, and the posterior's mean."""
    sharp(tiny)
    contexts = tuple(
        Snippet(text, str(i), "ada", weight=by) for i, (text, by) in enumerate(zip(SAID, planted, strict=False))
    )
    part = MultiCoS(strength=1.0, template="{request}\n\n{profile}", placement="user")
    plan = part.plan(ASKED, UserState(snippets=contexts), PolicySpec())
    sampling = Sampling(temperature=1.0, max_new_tokens=48, n=8, seed=3)
    drawn = Decoder(tiny, 8).generate([Job("q", replace(plan, sampling=sampling))])
    asked = "What is tea?"
    ids = [
        tuple(tiny.encode((Message("user", text),)))
        for text in (asked, *(f"{asked}\n\n{one.text}" for one in contexts))
    ]
    points = list(itertools.product(GRID, repeat=len(planted)))
    total = np.sum([steered_logprobs(tiny, ids[0], ids[1:], one.tokens, points) for one in drawn], axis=0)
    mass = np.exp(total - total.max())
    assert points[int(total.argmax())] == planted
    assert mass @ np.array(points) / mass.sum() == pytest.approx(planted, abs=0.2)


def sharp(policy: Policy) -> None:
    """A random model hardly heeds its prompt: what it says is made to depend more on what it reads."""
    policy.model.get_output_embeddings().weight.data.mul_(8.0)


def test_what_was_read_is_kept_and_goes_with_the_user(
    tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = "personalign.memory.steered.steered_logprobs"
    read_once_and_forgotten(lambda: filled(memory(tmp_path)), ASKED, tiny, tmp_path, read, 2, monkeypatch)


def test_only_what_came_before_counts_and_nothing_of_others(tiny: Policy, tmp_path: Path) -> None:
    later = Request(id="r", user="ada", messages=ASKED.messages, time=1.5)
    mean = sum(GRID) / len(GRID)
    made = filled(memory(tmp_path))
    early = filled(memory(tmp_path / "other"), HISTORY[:2])
    assert made.recall(later, tiny) == early.recall(ASKED, tiny)
    alone = made.recall(ASKED, tiny)
    filled(made, [event(n, "text", "bo", text="Something else altogether.") for n in range(3)])
    assert made.recall(ASKED, tiny) == alone
    silent = filled(memory(tmp_path), HISTORY[:1])
    for policy in (tiny, None):
        assert [one.weight for one in silent.recall(ASKED, policy).snippets] == pytest.approx([mean, mean])
    assert made.recall(Request(id="s", user="bo", messages=ASKED.messages), tiny).snippets == ()


def test_contexts_are_the_newest_by_sentence_or_whole(tmp_path: Path) -> None:
    events = [*HISTORY, event(3, "statement", text="Be brief.")]
    texts = [one.text for one in filled(memory(tmp_path), events).recall(ASKED, None).snippets]
    assert texts == [SAID[1], "Be brief."]
    whole = [one.text for one in filled(memory(tmp_path, sentences=False), events).recall(ASKED, None).snippets]
    assert whole == [" ".join(SAID), "Be brief."]


def test_evidence_that_does_not_fit_is_left_out(tiny: Policy, tmp_path: Path) -> None:
    """The tiny model's context is 512 tokens, which are bytes here."""
    long = event(3, "choice", prompt="x" * 600, chosen="Yes.", rejected="No.")
    state = filled(memory(tmp_path), [*HISTORY, long]).recall(ASKED, tiny)
    assert state == filled(memory(tmp_path)).recall(ASKED, tiny)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contexts": ["statement", "text"]}, "text cannot be both a context and evidence"),
        ({"grid": []}, "0 values for 2 contexts"),
        ({"k": 9}, "5 values for 9 contexts: they make 1 to 4096 points"),
        ({"template": "Hello"}, "lacks {profile}"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        memory(tmp_path, **changes)
