"""BM25 against its formula, and its edges."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalign.memory.bm25 import BM25, words
from personalign.types import Event, Message, Request

KINDS = ["text", "choice"]
K1, B = 1.2, 0.6


def memory_of(texts: list[str], k: int = 20) -> BM25:
    memory = BM25(k=k, k1=K1, b=B, kinds=KINDS)
    for i, text in enumerate(texts):
        memory.observe(Event(id=str(i), user="u", time=float(i), kind="text", payload={"text": text}))
    return memory


def ask(memory: BM25, text: str, time: float = float("inf")) -> list[tuple[int, float]]:
    request = Request(id="q", user="u", time=time, messages=(Message("user", text),))
    return [(int(s.event), s.score) for s in memory.recall(request, None).snippets]


def formula(texts: list[str], query: str) -> list[float]:
    """Lucene's BM25 by the book: no index, no library."""
    corpus = [text.split() for text in texts]
    mean = sum(map(len, corpus)) / len(corpus)
    scores = []
    for document in corpus:
        total = 0.0
        for word in query.split():
            f, n = document.count(word), sum(word in other for other in corpus)
            idf = math.log(1 + (len(corpus) - n + 0.5) / (n + 0.5))
            total += idf * f / (f + K1 * (1 - B + B * len(document) / mean)) if f else 0.0
        scores.append(total)
    return scores


SENTENCE = st.lists(st.sampled_from(["ant", "bee", "cat", "dog", "elk"]), min_size=1, max_size=6).map(" ".join)


@settings(deadline=None)
@given(st.lists(SENTENCE, min_size=1, max_size=8), SENTENCE, st.integers(1, 9))
def test_equal_to_the_formula_on_what_came_before(texts: list[str], query: str, now: int):
    now = min(now, len(texts))
    expected = formula(texts[:now], query)
    found = ask(memory_of(texts), query, time=float(now))
    assert dict(found) == pytest.approx(dict(enumerate(expected)))
    order = [(score, i) for i, score in found]
    assert all(a[0] > b[0] or (a[0] == b[0] and a[1] > b[1]) for a, b in pairwise(order))


def test_top_k_and_ties_to_the_newest():
    memory = memory_of(["red fox", "red fox", "blue sky", "green sea"], k=3)
    found = ask(memory, "red fox")
    assert [i for i, _ in found] == [1, 0, 3]
    assert found[0][1] == found[1][1] > found[2][1] == 0.0


@pytest.mark.parametrize("query", ["", "  ", "?!", "unknown words alone"])
def test_a_query_without_a_match_falls_back_to_recency(query):
    assert ask(memory_of(["a b", "c d", "e f"], k=2), query) == [(2, 0.0), (1, 0.0)]


def test_texts_without_words_are_recalled_with_score_zero():
    assert ask(memory_of(["!!!"]), "!!!") == [(0, 0.0)]
    assert ask(memory_of(["...", "fox"]), "fox")[0][0] == 1


def test_zero_and_one_event():
    assert ask(memory_of([]), "fox") == []
    ((i, score),) = ask(memory_of(["the fox"]), "the fox")
    assert (i, score) == (0, pytest.approx(2 * math.log(4 / 3) / (1 + K1)))


def test_stop_words_count():
    assert ask(memory_of(["the", "fox"]), "the")[0][0] == 0


def test_the_newest_user_turn_is_the_query():
    memory = memory_of(["red fox", "blue sky"])
    turns = (Message("user", "blue sky"), Message("assistant", "blue sky"), Message("user", "red fox"))
    found = memory.recall(Request(id="q", user="u", messages=turns), None).snippets
    assert found[0].text == "red fox"


@pytest.mark.parametrize(
    ("texts", "query"),
    [
        (["我喜欢喝茶", "我喜欢跑步"], "跑步"),
        (["ฉันชอบดื่มชา", "ฉันชอบวิ่ง"], "วิ่ง"),
        (["मुझे चाय पसंद है", "मुझे दौड़ना पसंद है"], "दौड़ना"),
        (["Я люблю чай", "Я люблю БЕГ"], "бег"),  # noqa: RUF001
        (["أحب الشاي", "أحب الجري"], "الجري"),
        (["une idée", "un CAFÉ"], "café"),
    ],
)
def test_other_scripts_match(texts, query):
    (best, score), (_, second) = ask(memory_of(texts), query)
    assert best == 1 and score > second


def test_words():
    assert words("Don't PANIC, ﬁve 日本語 words: दौड़ना!") == [
        "don",
        "t",
        "panic",
        "five",
        *"日本語",
        "words",
        "दौड़ना",
    ]


def test_the_index_is_built_once_and_renewed_by_a_new_event(monkeypatch):
    memory = memory_of(["red fox", "blue sky"])
    built: list[int] = []
    build = memory._build
    monkeypatch.setattr(memory, "_build", lambda corpus: built.append(len(corpus)) or build(corpus))
    ask(memory, "red")
    ask(memory, "blue")
    assert built == [2]
    memory.observe(Event(id="2", user="u", time=0.5, kind="text", payload={"text": "red red"}))
    memory.observe(Event(id="aside", user="v", time=0.5, kind="text", payload={"text": "red"}))
    assert sorted(i for i, _ in ask(memory, "red")) == [0, 1, 2]
    assert built == [2, 3]
    assert [i for i, _ in ask(memory, "red", time=1.0)] == [2, 0]
    assert built == [2, 3, 2]
    memory.observe(Event(id="3", user="u", time=-1.0, kind="text", payload={"text": "red"}))
    assert [i for i, _ in ask(memory, "red", time=0.5)] == [3, 0]
    assert built == [2, 3, 2, 2]


def test_a_megabyte_of_text_is_taken():
    memory = memory_of(["fox " * 250_000, "owl"])
    assert ask(memory, "owl " * 250_000)[0][0] == 1


def test_bm25s_is_imported_only_to_build_an_index():
    code = "import sys, personalign.memory.bm25; print('bm25s' in sys.modules, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
