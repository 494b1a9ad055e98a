"""A history as vectors: those of the encoder, of the user's own past alone, each embedded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from personalign.memory.history_vectors import HistoryVectors
from personalign.policy.embedder import Embedder, load_embedder
from personalign.types import Event, Message, Request, UserState

Make = Callable[..., HistoryVectors]


def took_in(memory: HistoryVectors, texts: list[str], user: str = "ada") -> HistoryVectors:
    for i, text in enumerate(texts):
        memory.observe(Event(id=str(i), user=user, time=float(i), kind="text", payload={"text": text}))
    return memory


def asked(text: str, user: str = "ada", time: float = float("inf")) -> Request:
    return Request(id=f"{user}/{text}/{time}", user=user, time=time, messages=(Message("user", text),))


@pytest.fixture
def alone(encoder: Path, tmp_path: Path) -> Callable[[str], tuple[float, ...]]:
    """The vector of a text that has a batch to itself."""
    embedder = load_embedder(str(encoder), None, str(tmp_path), 64, 1)
    return lambda text: tuple(embedder([text])[0].tolist())


def test_vectors_are_those_of_the_texts_oldest_first(history_vectors: Make, alone: Callable[..., object]) -> None:
    texts = ["red fox", "blue sky", "green sea", "  ", "grey stone"]
    state = took_in(history_vectors(), texts).recall(asked("a fox?"), None)
    expected = [alone(text) for text in ("blue sky", "green sea", "grey stone")]
    torch.testing.assert_close(torch.tensor(state.history), torch.tensor(expected), atol=2e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(state.vectors["request"]), torch.tensor(alone("a fox?")), atol=2e-6, rtol=0)
    assert state.snippets == () and state.profile is None, "no text leaves this memory"
    everything = took_in(history_vectors(k=None), texts).recall(asked("a fox?"), None)
    assert len(everything.history) == 4 and everything.history[1:] == state.history


def test_what_comes_later_or_from_others_is_not_read(history_vectors: Make, alone: Callable[..., object]) -> None:
    memory = took_in(took_in(history_vectors(), ["red fox", "blue sky"]), ["green sea"], "bo")
    (vector,) = memory.recall(asked("why?", time=1.0), None).history
    assert vector == pytest.approx(alone("red fox"), abs=2e-6)
    assert memory.recall(asked("why?", "bo"), None) == took_in(history_vectors(), ["green sea"], "bo").recall(
        asked("why?", "bo"), None
    )


def test_without_a_history_there_is_nothing_and_nothing_is_embedded(
    history_vectors: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embedder, "_embed", None)
    memory = took_in(history_vectors(), ["red fox"], "bo")
    assert memory.recall(asked("why?"), None) == UserState()


def test_a_request_without_text_is_no_direction(history_vectors: Make) -> None:
    state = took_in(history_vectors(), ["red fox"]).recall(asked("  "), None)
    assert len(state.history) == 1 and set(state.vectors["request"]) == {0.0}


def test_each_text_is_embedded_once_and_kept_until_it_is_forgotten(
    history_vectors: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    embed = Embedder._embed
    monkeypatch.setattr(Embedder, "_embed", lambda self, texts: read.extend(texts) or embed(self, texts))
    memory = took_in(history_vectors(), ["red fox", "blue sky", "red fox"])
    requests = [asked("fox"), asked("sky", time=2.0), asked("fox", "bo")]
    together = memory.recall_all(requests, None)
    assert sorted(read) == ["blue sky", "fox", "red fox", "sky"]
    again = took_in(history_vectors(), ["red fox", "blue sky", "red fox"])
    assert [again.recall(request, None) for request in requests] == together and len(read) == 4
    memory.forget("ada")
    took_in(memory, ["red fox"]).recall(asked("fox"), None)
    assert sorted(read[4:]) == ["fox", "red fox"]
