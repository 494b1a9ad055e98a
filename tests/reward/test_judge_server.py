"""The judge against a real endpoint: the server that comes with transformers, on this machine, with the embedded model.

The independent opinion is that of the same model, asked in this process by transformers' own `generate`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving import Served

from personalign.contracts import UserError
from personalign.reward.judge import Judge, PairwiseJudge
from personalign.types import Message, Request, UserState

pytestmark = [pytest.mark.slow, pytest.mark.model]

CONF = Path(__file__).parents[2] / "conf" / "reward"
REQUEST = Request(id="r", user="u", messages=(Message("user", "What is for dinner?"),))
STATE = UserState(profile="I like short answers.")
# So small a model follows no long instruction, but it repeats a verdict that stands in an answer, and of two answers it
# takes the first one, whatever they are.
RATE = """{user} {request} {verdicts}
Say "Verdict: {answer}"."""
COMPARE = """{user} {request} {second} {verdicts}
Say "Verdict: {first}"."""
FIRST = """{user} {request} {first} {second}
Say "Verdict: first" if this is good, and "Verdict: second" if it is bad. ({verdicts})"""
TOKENS = 24  # of a reply, at most


@pytest.fixture(scope="module")
def generated(served: Served) -> Callable[[str], str]:
    """What the model says to a prompt, greedily, when nothing stands between."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(served.folder)
    model = AutoModelForCausalLM.from_pretrained(served.folder, dtype=torch.float32)

    def say(prompt: str) -> str:
        chat = [{"role": "user", "content": prompt}]
        given = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**given, max_new_tokens=TOKENS, do_sample=False)
        return str(tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True))

    return say


@pytest.fixture
def make(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Judge]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PERSONALIGN_JUDGE_URL", served.url)

    def made(kind: type[Judge] = Judge, **changes: Any) -> Judge:
        name, prompt = ("judge_pairwise", COMPARE) if kind is PairwiseJudge else ("judge", RATE)
        shipped = {k: v for k, v in yaml.safe_load((CONF / f"{name}.yaml").read_text()).items() if k != "_target_"}
        own = {"model": str(served.folder), "cache": str(tmp_path / "cache"), "prompt": prompt, "max_tokens": TOKENS}
        return kind(**{**shipped, **own, **changes})

    return made


def verdict(judge: Judge, reply: str) -> float:
    """What a reply is worth. Any other reply makes a test of nothing."""
    value = judge._read(reply)
    assert value is not None, f"the model gives no verdict, but says {reply!r}"
    return value


def test_a_verdict_is_the_model_s_own_and_is_asked_for_once(
    served: Served, generated: Callable[[str], str], make: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, texts = make(), ["8", "2", "8"]
    before = served.asked()
    scores = [score.total for score in judge.score(REQUEST, STATE, texts)]
    assert scores == [verdict(judge, generated(judge._question(REQUEST, STATE, text))) for text in texts]
    assert len(set(scores)) == 2, "the answers count"
    assert served.asked() == before + 2, "the answer that recurs is asked about once"
    monkeypatch.setenv("PERSONALIGN_JUDGE_URL", "http://127.0.0.1:1/v1")
    assert [score.total for score in make().score(REQUEST, STATE, texts)] == scores
    assert served.asked() == before + 2, "what was answered is known by its content, wherever the endpoint is now"


@pytest.mark.parametrize(
    ("prompt", "texts", "better"),
    [(COMPARE, ["tie", "second"], ["tie"]), (FIRST, ["Soup.", "I hate you."], [])],
    ids=["one is better", "a preference for a place is a tie"],
)
def test_two_answers_are_put_in_both_orders(
    prompt: str,
    texts: list[str],
    better: list[str],
    served: Served,
    generated: Callable[[str], str],
    make: Callable[..., Judge],
) -> None:
    judge, (one, other) = make(PairwiseJudge, prompt=prompt), texts
    orders = ((one, other), (other, one))
    first, second = (verdict(judge, generated(judge._question(REQUEST, STATE, *order))) for order in orders)
    before = served.asked()
    for _ in range(2):
        scores = [score.total for score in make(PairwiseJudge, prompt=prompt).score(REQUEST, STATE, texts)]
        assert scores == [(first - second) / 2, (second - first) / 2]
        assert [text for text, score in zip(texts, scores, strict=True) if score > 0] == better
        assert served.asked() == before + 2, "each order once"


def test_a_reply_that_the_server_cuts_is_no_verdict(served: Served, make: Callable[..., Judge]) -> None:
    before = served.asked()
    with pytest.raises(UserError, match=r"was asked twice .* was cut at max_tokens=2 \(raise it\)"):
        make(max_tokens=2).score(REQUEST, STATE, ["Soup."])
    assert served.asked() == before + 2


def test_the_server_s_refusal_is_one_line_with_the_remedy(make: Callable[..., Judge]) -> None:
    with pytest.raises(UserError, match=r"status 400, .*pinned to .*: check the model \(another\)") as caught:
        make(model="another").bind(None, None)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
