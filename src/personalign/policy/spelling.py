"""What the tokens of a vocabulary spell, and how its tokenizer cuts any bytes: what two vocabularies have in common."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from personalign.contracts import UserError
from personalign.policy.chat import special_texts

Ids = tuple[int, ...]


class Spelling:
    """The bytes of every token of a byte-level BPE tokenizer (GPT-2's kind: Llama 3, Qwen, SmolLM, ...), and back.

    Special tokens spell nothing. Raises UserError for a tokenizer of another kind.
    """

    def __init__(self, tokenizer: Any, label: str) -> None:
        from tokenizers import Tokenizer

        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        described = json.loads(backend.to_str()) if backend is not None else {}
        if (described.get("model") or {}).get("type") != "BPE" or "ByteLevel" not in json.dumps(
            described.get("decoder")
        ):
            raise UserError(
                f"the tokenizer of {label} is no byte-level BPE, so its tokens cannot be told in bytes: two models "
                "with different tokenizers work together only where both are (Llama 3, Qwen, SmolLM, GPT-2)"
            )
        self._core = Tokenizer.from_str(backend.to_str())
        self._core.encode_special_tokens = True  # a text that looks like a special token is text
        self._letters = letters()
        self.texts = self._spelled(tokenizer)
        self.ids: dict[bytes, int] = {}
        for token, text in sorted(self.texts.items(), reverse=True):
            self.ids[text] = token
        self.specials = {tokenizer.convert_tokens_to_ids(text): text for text in special_texts(tokenizer)}
        self._sorted = sorted(self.ids)

    def _spelled(self, tokenizer: Any) -> dict[int, bytes]:
        numbers = {letter: byte for byte, letter in enumerate(self._letters)}
        added = tokenizer.added_tokens_decoder
        found: dict[int, bytes] = {}
        for token, i in self._core.get_vocab().items():
            if i in added:
                text = b"" if added[i].special else added[i].content.encode()
            else:
                text = bytes(numbers[c] for c in token) if all(c in numbers for c in token) else b""
            if text:
                found[i] = text
        return found

    def spell(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.texts.get(i, b"") for i in ids)

    def longer(self, start: bytes) -> list[bytes]:
        """The tokens that begin with these bytes and go on."""
        first = bisect_right(self._sorted, start)
        return self._sorted[first : bisect_left(self._sorted, True, first, key=lambda text: not text.startswith(start))]

    def cut(self, texts: Sequence[bytes]) -> list[Ids]:
        """The tokenizer's own tokens of each text; () where they do not spell it.

        Bytes that are no whole UTF-8 text are merged as they stand, without being split into words before.
        """
        whole = [decoded(text) for text in texts]
        known = iter(self._core.encode_batch([text for text in whole if text is not None], add_special_tokens=False))
        found = []
        for text, words in zip(texts, whole, strict=True):
            ids = self._merged(text) if words is None else tuple(next(known).ids)
            found.append(ids if self.spell(ids) == text else ())
        return found

    def _merged(self, text: bytes) -> Ids:
        return tuple(token.id for token in self._core.model.tokenize("".join(self._letters[byte] for byte in text)))


def decoded(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it is printable, else one of those
    from 256 on, in order."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(others)) for byte in range(256)]
