"""Drift's weights: against log-likelihoods token by token in float64, against opposite users, and what they read."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as brute
import vocabularies
from keeping import read_once_and_forgotten
from omegaconf import OmegaConf

from personalign.composition.build import build
from personalign.composition.home import home
from personalign.contracts import UserError
from personalign.memory.drift_weights import DriftWeights
from personalign.memory.margins import margins
from personalign.plans import Chat, Stream
from personalign.policy.policy import Policy
from personalign.runtime.prompts import in_system
from personalign.types import Event, Message, Request, UserState

PROMPTS = {"warmth": "You are warm!", "length": "You give long answers.", "grade": "Use long words."}
ASKED = Request(id="q", user="ada", messages=(Message("user", "What is tea?"),))


def memory(cache: Path, **changes: Any) -> DriftWeights:
    """The shipped part with other prompts."""
    whole = OmegaConf.create({"paths": {"cache": str(cache)}, "prompts": {"attributes": PROMPTS}})
    whole["part"] = OmegaConf.load(home() / "conf/memory/drift_weights.yaml")
    whole.part.update(changes)
    made: DriftWeights = build(whole.part)
    return made


def choice(number: int, prompt: str, chosen: str, rejected: str, user: str = "ada") -> Event:
    payload = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return Event(id=str(number), user=user, time=float(number), kind="choice", payload=payload)


HISTORY = [
    choice(0, "What is rain?", "Sky tears, my dear friend.", "Water."),
    choice(1, "Why?", "Because of gravity, which pulls.", "No idea, who knows."),
    choice(2, "Any news?", "None.", "There are three storms coming."),
]


def filled(made: DriftWeights, events: list[Event] = HISTORY) -> DriftWeights:
    for one in events:
        made.observe(one)
    return made


def weights(state: UserState) -> dict[str, float]:
    assert state.stance is not None
    return state.stance.as_dict()


def likelihood(policy: Policy, prompt: tuple[Message, ...], text: str) -> float:
    """log p(text, its end included | prompt), a forward for every token."""
    answer = policy.encode_answer(text)
    stream = Stream((Chat(prompt),))
    return float(sum(brute.logprobs(policy, stream, answer[:t])[token] for t, token in enumerate(answer)))


def by_hand(policy: Policy, events: list[Event], names: list[str]) -> dict[str, float]:
    """The formula, in float64."""
    twin, found = brute.exact(policy), []
    for one in events:
        plain = (Message("user", one.payload["prompt"]),)
        asked = [plain, *(in_system(plain, PROMPTS[name]) for name in names)]
        likes, leaves = ([likelihood(twin, p, one.payload[key]) for p in asked] for key in ("chosen", "rejected"))
        margin = np.subtract(likes, leaves)
        found.append(margin[1:] - margin[0])
    mean = np.mean(found, axis=0)
    return dict(zip(names, mean / np.sqrt((mean**2).sum()), strict=True))


def test_the_weights_are_mean_log_ratios_of_unit_length(tiny: Policy, tmp_path: Path) -> None:
    expected = by_hand(tiny, HISTORY, list(PROMPTS))
    found = weights(filled(memory(tmp_path)).recall(ASKED, tiny))
    assert found == pytest.approx(expected, abs=1e-4)
    assert math.hypot(*found.values()) == pytest.approx(1.0)
    some = ["grade", "length"]
    chosen = weights(filled(memory(tmp_path, dimensions=some)).recall(ASKED, tiny))
    assert chosen == pytest.approx(by_hand(tiny, HISTORY, some), abs=1e-4) and list(chosen) == some


def test_who_chooses_the_opposite_has_the_opposite_weights(tiny: Policy, tmp_path: Path) -> None:
    made = filled(memory(tmp_path))
    for one in HISTORY:
        chosen, rejected = one.payload["chosen"], one.payload["rejected"]
        made.observe(choice(int(one.id), one.payload["prompt"], rejected, chosen, user="bo"))
    ada, bo = (weights(state) for state in made.recall_all([ASKED, replace(ASKED, user="bo")], tiny))
    assert bo == pytest.approx({name: -by for name, by in ada.items()}, abs=1e-5)
    assert min(map(abs, ada.values())) > 1e-3


@pytest.mark.model
def test_an_attribute_whose_prompt_says_what_was_chosen_weighs_most(smollm2: Policy, tmp_path: Path) -> None:
    """On a model that has learned to read: who chooses the warm answers wants warmth, who leaves them does not."""
    prompts = {"warmth": "You are warm, cheerful and friendly.", "structure": "You answer in lists with short lines."}
    warm, cold = "Oh, what a lovely question, my dear friend! I am so happy to help!", "It is not known."
    lists, flat = "- Boil.\n- Pour.\n- Wait.\n- Drink.", "You boil water and pour it on the leaves, and wait a while."
    events = [choice(0, "How are you?", warm, cold), choice(1, "How is tea made?", flat, lists)]
    found = weights(filled(memory(tmp_path, attributes=prompts), events).recall(ASKED, smollm2))
    assert found["warmth"] > 0.2 and found["structure"] < -0.2


def test_the_model_that_reads_the_prompts_is_asked(tiny: Policy, tmp_path: Path) -> None:
    """The further model, with its own tokens; training changes nothing of it."""
    alone = weights(filled(memory(tmp_path / "one")).recall(ASKED, tiny))
    base = Policy(vocabularies.model(tiny.embedding.num_embeddings, 7), tiny.tokenizer, "other")
    other = weights(filled(memory(tmp_path / "two")).recall(ASKED, base))
    base.add_guest("guide", vocabularies.permuted(tiny, seed=1))
    guided = weights(filled(memory(tmp_path / "three")).recall(ASKED, base))
    assert guided == pytest.approx(alone, abs=1e-4) and guided != pytest.approx(other, abs=0.01)


def test_what_was_read_is_kept_and_goes_with_the_user(
    tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = "personalign.memory.margins.margins"
    read_once_and_forgotten(lambda: filled(memory(tmp_path)), ASKED, tiny, tmp_path, read, len(HISTORY), monkeypatch)


def test_only_what_came_before_counts_and_nothing_of_others(tiny: Policy, tmp_path: Path) -> None:
    made = filled(memory(tmp_path))
    early = replace(ASKED, time=1.5)
    assert made.recall(early, tiny) == filled(memory(tmp_path / "other"), HISTORY[:2]).recall(ASKED, tiny)
    alone = made.recall(ASKED, tiny)
    filled(made, [choice(n, "Hm?", "Something else.", "Nothing.", user="bo") for n in range(3)])
    assert made.recall(ASKED, tiny) == alone
    newest = filled(memory(tmp_path, choices=1)).recall(ASKED, tiny)
    assert newest == filled(memory(tmp_path / "last"), HISTORY[2:]).recall(ASKED, tiny) != alone


def test_who_showed_nothing_has_no_stance(tiny: Policy, tmp_path: Path) -> None:
    """The tiny model's context is 512 tokens, which are bytes here."""
    long, equal = choice(3, "x" * 600, "Yes.", "No."), choice(4, "Tea?", "Yes.", "Yes.")
    for events in ([], [long], [equal]):
        assert filled(memory(tmp_path), events).recall(ASKED, tiny) == UserState()
    assert filled(memory(tmp_path)).recall(ASKED, None) == UserState()
    alone = filled(memory(tmp_path)).recall(ASKED, tiny)
    assert filled(memory(tmp_path), [*HISTORY, long]).recall(ASKED, tiny) == alone


def test_adapters_are_left_aside(tiny: Policy) -> None:
    from personalign.policy.lora import LoRAConfig, parameters

    prompt, answers = tuple(tiny.encode(ASKED.messages)), [tuple(tiny.encode_answer(text)) for text in ("Yes.", "No.")]
    before = margins(tiny, [prompt], *answers)
    tiny.add_adapter("one", LoRAConfig(2, 4.0, 0.0, ("q_proj", "v_proj")))
    for parameter in parameters(tiny.model, "one"):
        parameter.data.fill_(0.3)
    with tiny.using((("one", 1.0),)):
        assert margins(tiny, [prompt], *answers) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dimensions": []}, "must name one or more dimensions"),
        ({"dimensions": ["warmth", "warmth"]}, "each once"),
        ({"dimensions": ["warmth", "poetry"]}, r"no prompt stands for 'poetry': .* \(now grade, length, warmth\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        memory(tmp_path, **changes)
