"""Guides with other tokens: against the one-model decoder, and against sums over all their token sequences."""

from __future__ import annotations

import copy
import itertools
import math
import random

import pytest
import torch
import vocabularies
from transformers import LlamaTokenizer

from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.guests import Company
from personalign.decoding.rows import Answer, Job, guests_of
from personalign.decoding.scoring import Reading, score_readings
from personalign.plans import Candidates, Chat, Plan, Sampling, Stream
from personalign.policy.covering import covering
from personalign.policy.lora import LoRAConfig, parameters
from personalign.policy.policy import Policy
from personalign.policy.spelling import Spelling
from personalign.types import Message

LETTERS = "abcé\u0120Ã©"  # é and the space as the vocabulary writes their bytes; é itself is another byte's letter
MERGES = {
    "pieces": [("a", "b"), ("b", "c"), ("ab", "c"), ("c", "a"), ("Ã", "©")],
    "others": [("b", "c"), ("a", "bc"), ("a", "b"), ("\u0120", "a"), ("bc", "a"), ("c", "Ã")],
    "letters": [],
    "whole": [("b", "c"), ("a", "bc"), ("a", "b"), ("\u0120", "a"), ("bc", "a")],  # no merge takes a part of é
}
TEXTS = ("What is tea?", "Why?", "A longer question, so that the rows are padded.")


def chat(text: str) -> tuple[Chat]:
    return (Chat((Message("user", text),)),)


def guided(text: str, model: str | None, **changes: object) -> Plan:
    """PAD with one guide: base + guide's adapter - guide, at the likeliest tokens."""
    values = {"max_new_tokens": 20, **changes}
    return Plan(
        (
            Stream(chat(text)),
            Stream(chat(f"{text} Please."), 1.5, (("one", 1.0),), None, model),
            Stream(chat(f"{text} Please."), -1.5, (), None, model),
        ),
        Candidates("top_k", k=7),
        Sampling(**values),  # type: ignore[arg-type]
    )


def adapted(policy: Policy) -> Policy:
    generator = torch.Generator().manual_seed(3)
    policy.add_adapter("one", LoRAConfig(4, 8, 0.0, ("q_proj", "v_proj", "down_proj")))
    for p in parameters(policy.model, "one"):
        torch.nn.init.normal_(p, std=0.15, generator=generator)
    return policy


@pytest.mark.parametrize("budget", [None, 700], ids=["fixed", "continuous"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "n": 2}], ids=["greedy", "drawn"])
def test_the_same_tokens_under_other_ids_change_nothing(
    tiny: Policy, budget: int | None, sampling: dict[str, float]
) -> None:
    twin = adapted(vocabularies.permuted(tiny, seed=1))
    adapted(tiny).add_guest("guide", twin)
    assert twin.tokenizer("a").input_ids != tiny.tokenizer("a").input_ids
    made = {}
    for model in (None, "guide"):
        jobs = [
            Job(f"r{i}", guided(text, model, max_new_tokens=20 - 6 * i, **sampling)) for i, text in enumerate(TEXTS)
        ]
        made[model] = Decoder(tiny, 4, budget).generate(jobs)
    assert [r.tokens for r in made["guide"]] == [r.tokens for r in made[None]]
    for one, other in zip(made[None], made["guide"], strict=True):
        assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)
        assert other.stop == one.stop


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GemmaTokenizer"])
def test_the_same_bytes_written_in_another_way_change_nothing(tiny: Policy, kind: str) -> None:
    """As characters with <0x..> behind them; tiny's own tokens are all bytes."""
    twin = Policy(vocabularies.copied(tiny), vocabularies.fallback(tiny.tokenizer, kind), "twin")
    adapted(tiny).add_guest("guide", adapted(twin))
    made = {}
    for model in (None, "guide"):
        jobs = [Job(f"r{i}", guided(text, model)) for i, text in enumerate(TEXTS)]
        made[model] = Decoder(tiny, 4).generate(jobs)
    assert [r.tokens for r in made["guide"]] == [r.tokens for r in made[None]]
    answer = tuple(tiny.encode_answer("Tea is é\U0001f375."))
    one, other = score_readings(tiny, [Reading("r", guided("What?", m), answer) for m in (None, "guide")], "test")
    assert other == pytest.approx(one, abs=1e-3)


def test_answers_are_read_as_the_guide_s_own_tokens(tiny: Policy) -> None:
    twin = adapted(vocabularies.permuted(tiny, seed=1))
    adapted(tiny).add_guest("guide", twin)
    answer = tuple(tiny.encode_answer("Tea is é\U0001f375."))
    plans = [guided("What?", model) for model in (None, "guide")]
    one, other = score_readings(tiny, [Reading("r", plan, answer) for plan in plans], "test")
    assert other == pytest.approx(one, abs=1e-3)


def pair(base: str, guide: str, kind: str = "") -> Policy:
    """A policy with a guest; the guest in double precision."""
    made = [vocabularies.tokenizer(LETTERS + "?:", MERGES[name]) for name in (base, guide)]
    made[1] = vocabularies.fallback(made[1], kind) if kind else made[1]
    policies = [vocabularies.policy(one, seed) for seed, one in enumerate(made)]
    policies[1].model.double()
    policies[0].add_guest("guide", policies[1])
    return policies[0]


def prompt_of(policy: Policy) -> list[int]:
    return policy.encode((Message("user", "ab?"),))


def cut(letters: str, merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding, as it is defined: the earliest merge that fits anywhere, leftmost first, until none does."""
    parts = list(letters)
    while fitting := [(merges.index(two), i) for i, two in enumerate(itertools.pairwise(parts)) if two in merges]:
        _, i = min(fitting)
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
    return parts


def brute(policy: Policy, names: tuple[str, str], tail: list[str]) -> float:
    """p(tail) by the definition, over every token sequence of the guide, one forward pass each; in letters."""
    merges, own = MERGES[names[0]], MERGES[names[1]]
    guide, text = policy.guests["guide"].policy, "".join(tail)
    ids = {name: i for name, i in guide.tokenizer.get_vocab().items() if not name.startswith("<")}
    found: list[list[str]] = []

    def grow(parts: list[str]) -> None:
        written = "".join(parts)
        if len(written) < len(text):
            for name in ids:
                if text.startswith(written + name) or (written + name).startswith(text):
                    grow([*parts, name])
        elif parts == cut(written, own) and (written == text or cut(written, merges)[: len(tail)] == tail):
            found.append(parts)

    grow([])
    prompt = prompt_of(guide)
    return math.log(sum(math.exp(likelihood(guide, prompt, tuple(ids[name] for name in parts))) for parts in found))


def likelihood(policy: Policy, prompt: list[int], ids: tuple[int, ...]) -> float:
    logits = policy.model(torch.tensor([[*prompt, *ids]])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(ids))


def spoken(policy: Policy, written: tuple[int, ...], candidates: list[int]) -> list[float]:
    """What the decoder's company says of candidates behind tokens that came one by one."""
    plan = Plan((Stream(chat("ab?")), Stream(chat("ab?"), 1.0, model="guide")), Candidates("top_k", k=3), Sampling())
    answer = Answer(Job("r", plan), [])
    company = Company(*policy.guests["guide"], guests_of(policy, answer))
    with torch.inference_mode():
        for token in written:
            company.speak({answer: candidates})
            answer.tokens.append(token)
        ((_, values),) = company.speak({answer: candidates})
    return values


@pytest.mark.parametrize(("base", "guide"), [*itertools.permutations(MERGES, 2), ("pieces", "pieces")])
def test_a_candidate_s_probability_is_the_sum_over_all_tokenizations(base: str, guide: str) -> None:
    policy = pair(base, guide)
    names = {name: i for name, i in policy.tokenizer.get_vocab().items() if not name.startswith("<")}
    with torch.inference_mode():
        wanted = [brute(policy, (base, guide), [name]) for name in names]
    assert spoken(policy, (), list(names.values())) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("base", "guide"), list(itertools.permutations(MERGES, 2)))
def test_what_is_open_is_summed_over_until_it_settles(base: str, guide: str) -> None:
    """The chain over written tokens: the joint probability of a text is that of its open tail behind what is
    settled."""
    policy = pair(base, guide)
    covers = policy.guests["guide"].covering
    generator = random.Random(7)
    for _ in range(6):
        letters = "".join(generator.choice("abc") for _ in range(7))
        ids = tuple(policy.tokenizer(letters, add_special_tokens=False).input_ids)
        settled: tuple[int, ...] = ()
        tail: tuple[int, ...] = ()
        for token in ids[:-1]:
            sure, tail = covers.settled((*tail, token))
            settled += sure
        (value,) = spoken(policy, ids[:-1], [ids[-1]])
        prompt = prompt_of(policy.guests["guide"].policy)
        with torch.inference_mode():
            each = [
                likelihood(policy.guests["guide"].policy, [*prompt, *settled], c)
                for c in covers.covers((*tail, ids[-1]))
            ]
        assert value == pytest.approx(float(torch.tensor(each, dtype=torch.float64).logsumexp(0)), abs=1e-5)
        assert covers.guide.spell(settled) + covers.base.spell(tail) == covers.base.spell(ids[:-1])


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GemmaTokenizer"])
@pytest.mark.parametrize("base", ["pieces", "letters"])
def test_merges_are_the_same_with_characters_and_with_bytes(base: str, kind: str) -> None:
    """Of a guide that falls back on bytes, beside a byte-level one of the same merges, ids and weights."""
    one, other = pair(base, "whole"), pair(base, "whole", kind)
    for written in ("", "ab", "ca bé", "é"):
        ids = tuple(one.tokenizer(written, add_special_tokens=False).input_ids)
        candidates = list(one.guests["guide"].covering.base.texts)
        values = spoken(one, ids, candidates)
        assert spoken(other, ids, candidates) == pytest.approx(values, abs=1e-9)
        assert max(values) > -20


def test_a_letter_is_not_told_by_its_byte() -> None:
    """Where a vocabulary has both, as Llama 2's does, its text is the letter's, and no space stands before a text."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a"]
    vocab = {name: i for i, name in enumerate(names)}
    llama = LlamaTokenizer(vocab=vocab, merges=[("\u2581", "a")])
    spelling = Spelling(llama, "llama")
    assert llama("a", add_special_tokens=False).input_ids == [vocab["\u2581a"]]
    assert spelling.cut([b"a", b" a", b"b", "é".encode()[:1], b"a\xff a"]) == [
        (vocab["a"],),
        (vocab["\u2581a"],),
        (vocab["<0x62>"],),
        (vocab["<0xC3>"],),
        (vocab["a"], vocab["<0xFF>"], vocab["\u2581a"]),
    ]
    assert spelling.ids[b"a"] == vocab["a"] and spelling.ids[b"b"] == vocab["<0x62>"]
    assert spelling.spell([1, vocab["\u2581a"], vocab["<0x0A>"]]) == b" a\n"


def test_bytes_of_a_base_of_letters_have_the_guide_s_byte_probabilities() -> None:
    """Where the base's tokens are bytes the sum is Phan's: the shares of all next bytes and the end make up one."""
    policy = pair("letters", "others")
    covers = policy.guests["guide"].covering
    values = spoken(policy, (), [*covers.base.texts, policy.tokenizer.eos_token_id])
    guide = policy.guests["guide"].policy
    with torch.inference_mode():
        logits = guide.model(torch.tensor([prompt_of(guide)])).logits[0, -1].double().log_softmax(-1)
    specials = [i for i in range(len(logits)) if i not in covers.guide.texts and i != guide.tokenizer.eos_token_id]
    assert math.fsum(map(math.exp, values)) == pytest.approx(1 - float(logits[specials].exp().sum()), abs=1e-6)


def test_the_end_of_text_is_the_end_of_text() -> None:
    policy = pair("pieces", "others")
    guide, end = policy.guests["guide"].policy, policy.tokenizer.eos_token_id
    covers = policy.guests["guide"].covering
    assert covers.covers((end,)) == ((guide.tokenizer.eos_token_id,),)
    ab = tuple(policy.tokenizer("ab", add_special_tokens=False).input_ids)
    own = tuple(guide.tokenizer("ab", add_special_tokens=False).input_ids)
    assert covers.covers((*ab, end)) == ((*own, guide.tokenizer.eos_token_id),)


def test_a_character_may_be_split_between_tokens() -> None:
    """The guide has é's two bytes apart, one of them in a token with a letter; the base has them as one token."""
    policy = pair("pieces", "others")
    covers = policy.guests["guide"].covering
    (whole,) = policy.tokenizer("é", add_special_tokens=False).input_ids
    (letter,) = policy.tokenizer("c", add_special_tokens=False).input_ids
    spelled = [covers.guide.spell(ids) for ids in covers.covers((letter, whole))]
    assert spelled == ["cé".encode()] and len(covers.covers((letter, whole))[0]) == 2
    (half,) = [i for i, text in covers.base.texts.items() if text == "é".encode()[:1]]
    assert covers.guide.spell(covers.covers((half,))[0]) == "é".encode()[:1]


def test_a_further_model_needs_candidates_and_bytes(tiny: Policy, encoder: object) -> None:
    tiny.add_guest("guide", vocabularies.permuted(tiny, 1))
    plan = Plan((Stream(chat("a")), Stream(chat("a"), 1.0, model="guide")))
    with pytest.raises(UserError, match="can speak only on the k likeliest tokens of the base"):
        Decoder(tiny, 2).generate([Job("r", plan)])
    from transformers import AutoTokenizer

    other = copy.copy(tiny)
    other.tokenizer = AutoTokenizer.from_pretrained(str(encoder))
    with pytest.raises(UserError, match="no BPE down to bytes"):
        covering(tiny, other)
