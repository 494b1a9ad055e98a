"""What the tokens of a vocabulary spell, and how its tokenizer cuts any bytes: what two vocabularies have in common."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from personalign.policy.chat import special_texts
from personalign.policy.scripts import Ids, script_of


class Spelling:
    """The bytes of every token of a BPE tokenizer, and back: byte-level ones (GPT-2's kind: Llama 3, Qwen, SmolLM) and
    those that fall back on bytes (SentencePiece's kind: Llama 2, Mistral, Gemma).

    Special tokens spell nothing. Raises UserError for a tokenizer of another kind.
    """

    def __init__(self, tokenizer: Any, label: str) -> None:
        self._script = script_of(tokenizer, label)
        self._core = self._script.core
        self._core.encode_special_tokens = True  # a text that looks like a special token is text
        self.texts = self._spelled(tokenizer)
        self.ids: dict[bytes, int] = {}
        names = {i: token for token, i in self._core.get_vocab().items()}
        # The last one stays: A where there is also <0x41>, and of several the one with the smallest id.
        for token in sorted(self.texts, key=lambda i: (len(names[i]), i), reverse=True):
            self.ids[self.texts[token]] = token
        self.specials = {tokenizer.convert_tokens_to_ids(text): text for text in special_texts(tokenizer)}
        self._sorted = sorted(self.ids)

    def _spelled(self, tokenizer: Any) -> dict[int, bytes]:
        texts = {i: self._script.spell(token) for token, i in self._core.get_vocab().items()}
        added = tokenizer.added_tokens_decoder.items()
        texts |= {i: b"" if token.special else token.content.encode() for i, token in added}
        return {i: text for i, text in texts.items() if text}

    def spell(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.texts.get(i, b"") for i in ids)

    def longer(self, start: bytes) -> list[bytes]:
        """The tokens that begin with these bytes and go on."""
        first = bisect_right(self._sorted, start)
        return self._sorted[first : bisect_left(self._sorted, True, first, key=lambda text: not text.startswith(start))]

    def cut(self, texts: Sequence[bytes]) -> list[Ids]:
        """The tokenizer's own tokens of each text; () where they do not spell it."""
        whole = [decoded(text) for text in texts]
        known = iter(self._core.encode_batch([text for text in whole if text is not None], add_special_tokens=False))
        found = []
        for text, words in zip(texts, whole, strict=True):
            ids = self._script.cut_bytes(text) if words is None else tuple(next(known).ids)
            found.append(ids if self.spell(ids) == text else ())
        return found


def decoded(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None
