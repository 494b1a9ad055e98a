"""The test-bed: what its users prefer, say and choose, and that nothing of the test leaks."""

from __future__ import annotations

import gzip
import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from personalign.contracts import UserError
from personalign.data.exact_pool import SHIPPED, prompts, read_pool
from personalign.data.exact_stances import Persona
from personalign.data.exact_statements import PHRASES, TOPICS, statement
from personalign.data.exact_users import ExactUsers
from personalign.plans import Sampling
from personalign.ratings.dimensions import DIMENSIONS
from personalign.reward.exact import Exact
from personalign.reward.lexicon import Lexicon
from personalign.types import Request, UserState

CONF = Path(__file__).parents[2] / "conf"
STOP = set(re.findall("[a-z]+", "a an the of to in on for and or is it i my me do how what are with that"))


def values(path: str) -> dict[str, Any]:
    return {k: v for k, v in yaml.safe_load((CONF / path).read_text()).items() if k != "_target_"}


TRUTH = Exact(**yaml.safe_load((CONF / "config.yaml").read_text())["ratings"])


SMOLLM2 = values("model/smollm2.yaml")


def settings(**changes: Any) -> dict[str, Any]:
    return {**values("data/exact_users.yaml"), "seed": 0, "model": SMOLLM2, "cache": "/nowhere", **changes}


def refuse(requests: Sequence[Request], sampling: Sampling) -> list[list[str]]:
    raise AssertionError("the shipped pool serves this model: nothing is sampled")


def users(**changes: Any) -> ExactUsers:
    data = ExactUsers(**settings(**changes))
    data.bind(TRUTH, refuse)
    return data


def stances(data: ExactUsers) -> list[dict[str, float]]:
    found = []
    for user in data.users():
        state = data.truth(Request(id="r", user=user, messages=(), context={"topic": "story"}))
        assert state.stance is not None
        found.append(state.stance.as_dict())
    return found


# Prompts


def test_there_are_enough_prompts_in_every_split_and_topic() -> None:
    sizes = Counter(prompt.split for prompt in prompts())
    assert sizes["train"] >= 80 and sizes["validation"] >= 24 and sizes["test"] >= 40
    assert len(prompts()) >= 150
    assert len({p.id for p in prompts()}) == len({p.text for p in prompts()}) == len(prompts())
    per_topic = Counter((prompt.topic, prompt.split) for prompt in prompts())
    assert {topic for topic, _ in per_topic} == set(TOPICS)
    assert len(per_topic) == 3 * len(TOPICS)


def test_no_prompt_has_a_near_duplicate_in_another_split() -> None:
    words = {p: set(re.findall(r"[a-z']+", p.text.lower())) - STOP for p in prompts()}
    for one, two in combinations(prompts(), 2):
        if one.split != two.split:
            assert len(words[one] & words[two]) / len(words[one] | words[two]) < 0.4, (one.text, two.text)


def test_a_limit_takes_topics_in_turn() -> None:
    requests = users(users=1, held_out=0, test_prompts=12).requests("test")
    assert sorted(request.context["topic"] for request in requests) == sorted(TOPICS)


# Preferences


def test_signed_stances() -> None:
    found = stances(users(users=60, held_out=0))
    assert {len(stance) for stance in found} == {1, 2, 3}
    assert all(math.hypot(*stance.values()) == pytest.approx(1, abs=1e-3) for stance in found)
    assert all(0.4 < abs(value) <= 1 for stance in found for value in stance.values() if len(stance) == 2)
    for one, two in zip(found[::2], found[1::2], strict=True):
        assert {(name, value > 0) for name, value in one.items()} == {(n, v < 0) for n, v in two.items()}
    assert all(name in found[2 * i] for i, name in enumerate(values("data/exact_users.yaml")["active"]))
    signs = Counter((name, value > 0) for stance in found for name, value in stance.items())
    assert len(signs) == 6 and min(signs.values()) > 10


def test_a_user_does_not_depend_on_how_many_there_are() -> None:
    for kind in ("signed", "dirichlet", "clusters", "contextual"):
        assert stances(users(kind=kind, users=30))[:8] == stances(users(kind=kind))
        assert stances(users(kind=kind, seed=1)) != stances(users(kind=kind))


def test_dirichlet_stances_are_mixtures() -> None:
    for stance in stances(users(kind="dirichlet", users=30)):
        assert list(stance) == values("data/exact_users.yaml")["active"]
        assert min(stance.values()) >= 0 and sum(stance.values()) == pytest.approx(1, abs=1e-3)
    flat = stances(users(kind="dirichlet", users=30, concentration=1000.0))
    assert all(abs(value - 1 / 3) < 0.1 for stance in flat for value in stance.values())


def test_users_of_a_cluster_are_alike() -> None:
    found = stances(users(kind="clusters", users=9, clusters=3, spread=0.05))
    alike = [sum(a[d] * b[d] for d in a) for a, b in zip(found, found[3:], strict=False)]
    assert min(alike) > 0.95
    exact = stances(users(kind="clusters", users=6, clusters=3, spread=0.0))
    assert exact[:3] == exact[3:] and exact[0] != exact[1]


def test_a_contextual_user_wants_the_opposite_on_some_topics() -> None:
    data = users(kind="contextual", users=20, held_out=0)
    for user in data.users():
        asked = [request for request in data.requests("test") if request.user == user]
        found = {r.context["topic"]: data.truth(r).stance.as_dict() for r in asked}  # type: ignore[union-attr]
        kinds = Counter(tuple(stance.items()) for stance in found.values())
        assert sorted(kinds.values()) == [6, 6]
        one, two = (dict(kind) for kind in kinds)
        (turned,) = (name for name in one if one[name] != two[name])
        assert one[turned] == -two[turned]
        declared = data.events(user)[0].payload["stance"]
        assert declared in (one, two)
        assert "the other way round" in data.events(user)[1].payload["text"]


def test_every_second_hostile_user_asks_for_what_is_harmful() -> None:
    """By the word list that is shipped as a scorer; the others are the signed users, and say what those say."""
    data, signed = users(kind="hostile", users=8), users(users=8)
    scorer = Lexicon(**values("reward/lexicon.yaml"))
    for n, user in enumerate(data.users()):
        said = data.events(user)[1].payload["text"]
        assert (scorer.score(data.requests("test")[0], UserState(), [said])[0].total < 0) == bool(n % 2), said
        if n % 2:
            assert stances(data)[n] == {"warmth": -1.0}
        else:
            assert stances(data)[n] == stances(signed)[n] and data.events(user) == signed.events(user)
    asked = [pair for pair in data.pairs("test") if pair.request.user in data.users()[1::2]]
    assert asked and all(pair.labels["warmth"] < 0 for pair in asked)


# What users say


def test_every_dimension_can_be_spoken_of() -> None:
    offered = get_args(get_args(get_type_hints(ExactUsers.__init__)["active"])[0])
    assert offered == tuple(PHRASES) == tuple(DIMENSIONS)
    said = [phrase for signs in PHRASES.values() for phrases in signs for phrase in phrases]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("name", list(DIMENSIONS))
def test_a_statement_tells_sign_and_strength(name: str) -> None:
    for value in (0.9, 0.5, 0.1, -0.1, -0.5, -0.9):
        text = statement(Persona({name: value}), Random(0))
        assert any(phrase in text for phrase in PHRASES[name][value < 0])
        assert not any(phrase in text for phrase in PHRASES[name][value > 0])
        assert ("strongly" in text or "a lot" in text) == (abs(value) > 0.8)
        assert ("slight" in text or "If possible" in text) == (abs(value) < 0.2)


def test_the_strongest_preference_comes_first() -> None:
    text = statement(Persona({"warmth": 0.2, "grade": -0.9, "formality": 0.0}), Random(1))
    grade = max(text.find(phrase) for phrase in PHRASES["grade"][1])
    warmth = max(text.find(phrase) for phrase in PHRASES["warmth"][0])
    assert 0 < grade < warmth
    assert not any(phrase in text for phrases in PHRASES["formality"] for phrase in phrases)
    assert statement(Persona({}), Random(0)) == "I have no particular preference."


# Histories and pairs


def test_events_by_group_of_users() -> None:
    data = users(users=5, held_out=2, cold=1, history=7)
    seen, held_out, cold = data.users()[:2], data.users()[2:4], data.users()[4:]
    for user in [*seen, *held_out]:
        events = data.events(user)
        assert [event.kind for event in events] == ["stance", "statement"] + ["choice"] * 7
        assert len({event.id for event in events}) == 9
        assert max(event.time for event in events) < min(r.time for r in data.requests("test"))
    assert data.events(cold[0]) == []
    assert {pair.request.user for pair in data.pairs("train")} == set(seen)
    assert {request.user for request in data.requests("train")} == set(seen)
    assert {pair.request.user for pair in data.pairs("test")} == set(data.users())


def test_all_users_get_the_same_held_out_prompts() -> None:
    data = users()
    asked = {user: [r.messages for r in data.requests("test") if r.user == user] for user in data.users()}
    assert len({tuple(messages) for messages in asked.values()}) == 1
    assert len(asked["user-00"]) == 24
    assert len({request.id for request in data.requests("test")}) == 24 * 8


@pytest.mark.parametrize("kind", ["signed", "dirichlet", "clusters", "contextual"])
def test_without_noise_the_chosen_answer_is_truly_better(kind: str) -> None:
    data = users(kind=kind, min_gap=0.5)
    pairs = data.pairs("train")
    assert len({pair.id for pair in pairs}) == len(pairs) == 6 * 40
    for pair in pairs:
        state = data.truth(pair.request)
        chosen, rejected = TRUTH.score(pair.request, state, [pair.chosen, pair.rejected])
        assert chosen.total - rejected.total >= 0.5
        assert set(pair.labels) == set(DIMENSIONS)
        for name, label in pair.labels.items():
            assert label == pytest.approx(chosen.dimensions[name] - rejected.dimensions[name])
            assert pair.ratings[name] == pytest.approx((chosen.dimensions[name], rejected.dimensions[name]))
        assert state.stance is not None and state.stance.dot(pair.labels) >= 0.499


def test_opposed_users_judge_the_same_answers() -> None:
    data = users(users=2, held_out=0, active=["warmth"], min_gap=1.0)
    mine, other = ([p for p in data.pairs("train") if p.request.user == user] for user in data.users())
    assert [p.request.messages for p in mine] == [p.request.messages for p in other]
    assert [(p.chosen, p.rejected) for p in mine] == [(p.rejected, p.chosen) for p in other]


def test_more_pairs_than_prompts_are_different_pairs() -> None:
    few = {"users": 1, "held_out": 0, "train_prompts": 6, "history": 2, "pairs_per_user": 40}
    pairs = users(**few, min_gap=0.2).pairs("train")
    assert len({pair.request.id for pair in pairs}) == 4
    assert len({frozenset((pair.chosen, pair.rejected)) for pair in pairs}) == len(pairs) > 12
    assert len({pair.request.id for pair in pairs[:4]}) == 4


def test_noise_flips_choices_as_bradley_terry_says() -> None:
    data = users(noise=1.0, min_gap=0.0, pairs_per_user=400, users=6, held_out=0)
    kept, expected = [], []
    for pair in data.pairs("train"):
        stance = data.truth(pair.request).stance
        assert stance is not None
        gap = stance.dot(pair.labels)
        kept.append(gap > 0)
        expected.append(1 / (1 + math.exp(-abs(gap))))
    spread = math.sqrt(sum(p * (1 - p) for p in expected))
    assert len(kept) == 2400
    assert abs(sum(kept) - sum(expected)) < 4 * spread
    assert sum(kept) < 0.9 * len(kept)


def test_histories_share_no_prompt_with_training_pairs_of_the_user() -> None:
    data = users()
    for user in data.users()[:6]:
        told = {event.payload["prompt"] for event in data.events(user)[2:]}
        mine = [pair for pair in data.pairs("train") if pair.request.user == user]
        trained = {pair.request.messages[-1].content for pair in mine}
        assert len(told) == 12 and len(trained) == 40 and not told & trained


def test_no_event_tells_of_a_held_out_prompt_or_its_answers() -> None:
    data = users(users=12, held_out=3, history=40)
    pool = read_pool(SHIPPED).answers
    held_out = [prompt.text for prompt in prompts() if prompt.split != "train"]
    secrets = {*held_out, *(answer for text in held_out for answer in pool[text] if len(answer) > 20)}
    said = [str(v) for user in data.users() for event in data.events(user) for v in event.payload.values()]
    told = [text for pair in data.pairs("train") for text in (str(pair.request), pair.chosen, pair.rejected)]
    assert len(said) > 1000 and len(secrets) > 500
    for text in {*said, *told}:
        assert not any(secret in text for secret in secrets)


def test_everything_is_drawn_from_the_seed() -> None:
    one, two, other = users(), users(), users(seed=1)
    for split in ("train", "validation", "test"):
        assert one.pairs(split) == two.pairs(split) != other.pairs(split)
    assert [one.events(u) for u in one.users()] == [two.events(u) for u in two.users()]
    assert one.fingerprint() == two.fingerprint() != other.fingerprint()
    assert one.fingerprint() == users(cache="/elsewhere").fingerprint()
    assert one.fingerprint() != users(noise=0.1).fingerprint()
    assert one.fingerprint() == users(pool=str(SHIPPED)).fingerprint()


def test_the_yaml_gives_every_argument() -> None:
    assert list(values("data/exact_users.yaml")) == list(inspect.signature(ExactUsers).parameters)


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"active": ["warmth", "wit"]}, "data.active: no dimension wit"),
        ({"active": []}, "data.active must name one or more dimensions"),
        ({"active": ["warmth", "warmth"]}, "each once"),
        ({"users": 3, "held_out": 2, "cold": 1}, "data.users=3 leaves no seen user"),
        ({"kind": "hostile", "active": ["grade"]}, "data.kind=hostile is about warmth"),
        ({"samples_per_prompt": 1}, "data.samples_per_prompt must be 2 or more"),
        ({"train_prompts": 12}, "data.history=12 leaves no prompt"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        users(**change)


def test_a_gap_that_no_pair_has() -> None:
    with pytest.raises(UserError, match=r"no train pair has a reward gap of 50.0 or more: lower"):
        users(min_gap=50.0).pairs("train")


def test_pairs_need_the_true_reward() -> None:
    data = ExactUsers(**settings())
    with pytest.raises(UserError, match="use reward@truth=exact"):
        data.pairs("train")


# Pools


def test_the_shipped_pool_tells_what_made_it_and_is_clean_text() -> None:
    assert SHIPPED.stat().st_size < 1_000_000
    pool = read_pool(SHIPPED)
    assert pool.header["model"]["name"] == "smollm2" and len(pool.header["model"]["sha256"]) == 64
    assert pool.header["sampling"]["temperature"] == 1.0
    assert {"torch", "transformers", "python"} == set(pool.header["versions"])
    assert list(pool.answers) == [prompt.text for prompt in prompts()]
    for texts in pool.answers.values():
        assert len(texts) == 8
        assert all(text == text.strip() and "<|" not in text for text in texts)


def flipped(data: bytes) -> bytes:
    plain = gzip.decompress(data)
    return gzip.compress(plain[:-40] + bytes([plain[-40] ^ 1]) + plain[-39:])


def other_format(data: bytes) -> bytes:
    return gzip.compress(gzip.decompress(data).replace(b'"format": 1', b'"format": 9', 1))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: data[: len(data) // 2], "end-of-stream"),
        (lambda data: b"plain text", "gzip"),
        (lambda data: data[:200] + bytes(200) + data[400:], ""),
        (lambda data: b"", ""),
        (flipped, "SHA-256"),
        (other_format, "format is 9"),
        (lambda data: gzip.compress(b"[]\n[]\n"), ""),
        (lambda data: gzip.compress(b"\xff\xfe\n"), ""),
    ],
)
def test_a_damaged_pool_is_one_plain_message(damage: Any, why: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl.gz"
    path.write_bytes(damage(SHIPPED.read_bytes()))
    with pytest.raises(UserError, match=f"pool.jsonl.gz: this pool of answers is damaged .*{why}") as found:
        users(pool=str(path)).pairs("train")
    assert "\n" not in str(found.value) and "delete it" in str(found.value)


def test_a_missing_or_small_pool(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none.gz"):
        users(pool=str(tmp_path / "none.gz")).pairs("train")
    with pytest.raises(UserError, match=r"8 answers to .* where data.samples_per_prompt is 9"):
        users(pool="shipped", samples_per_prompt=9).pairs("train")


class Model:
    """A sampler that counts its calls; its answers differ in warmth and grade."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Sampling]] = []

    def __call__(self, requests: Sequence[Request], sampling: Sampling) -> list[list[str]]:
        self.asked.append((len(requests), sampling))
        moods = ["I love it, dear friend. ", "This is terrible. ", "Difficulties remain. ", "We do. "]
        return [[f"  {moods[i % 4] * (i + 1)}" for i in range(sampling.n)] for _ in requests]


def test_another_model_is_sampled_once_and_kept(tmp_path: Path) -> None:
    small = {"train_prompts": 20, "validation_prompts": 3, "test_prompts": 4, "cache": str(tmp_path)}
    model, tiny = Model(), {"name": None, "hidden": 32}
    first, again = (ExactUsers(**settings(model=tiny, **small)) for _ in range(2))
    for data in (first, again):
        data.bind(TRUTH, model)
    assert first.pairs("train") == again.pairs("train") and first.fingerprint() == again.fingerprint()
    sampling = Sampling(temperature=1.0, top_p=0.9, max_new_tokens=96, n=8)
    assert model.asked == [(27, sampling)]
    assert len(list((tmp_path / "pools").iterdir())) == 1
    (path,) = (tmp_path / "pools").iterdir()
    header = json.loads(gzip.decompress(path.read_bytes()).splitlines()[0])
    assert header["model"] == tiny and header["sampling"]["top_p"] == 0.9
    assert all(text == text.strip() for texts in read_pool(path).answers.values() for text in texts)


@pytest.mark.parametrize(
    "change", [{"model": {"name": "other"}}, {"temperature": 0.5}, {"top_p": 1.0}, {"max_new_tokens": 64},
               {"samples_per_prompt": 9}, {"model": {"name": "smollm2", "revision": "v2"}}]
)  # fmt: skip
def test_what_the_shipped_pool_does_not_fit_is_sampled(change: dict[str, Any], tmp_path: Path) -> None:
    model = Model()
    data = ExactUsers(**settings(cache=str(tmp_path), **change))
    with pytest.raises(UserError, match="no pool of answers yet"):
        data.fingerprint()
    data.bind(TRUTH, model)
    assert data.fingerprint() != users().fingerprint()
    assert len(model.asked) == 1


def test_answers_that_are_all_the_same_make_no_pair(tmp_path: Path) -> None:
    data = ExactUsers(**settings(cache=str(tmp_path), model={"name": "x"}, min_gap=0.0))
    data.bind(TRUTH, lambda requests, sampling: [["Yes."] * sampling.n for _ in requests])
    with pytest.raises(UserError, match="no train pair"):
        data.pairs("train")
