"""How vocabularies write bytes: a letter for each, or characters and, for those that are lacking, tokens of a byte."""

from __future__ import annotations

import json
import re
from itertools import groupby
from typing import Any, Protocol

from personalign.contracts import UserError

Ids = tuple[int, ...]
SPACE = "\u2581"  # how SentencePiece writes a space


class Script(Protocol):
    """How a vocabulary writes bytes."""

    core: Any  # the tokenizer, which adds nothing before a text

    def spell(self, token: str) -> bytes: ...

    def cut_bytes(self, text: bytes) -> Ids:
        """The tokens of bytes that are no whole UTF-8 text."""


class ByteLevel:
    """A letter for each byte; words are not split before merging where the bytes are no text."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.core = tokenizer_of(described)
        self._letters = letters()
        self._numbers = {letter: byte for byte, letter in enumerate(self._letters)}

    def spell(self, token: str) -> bytes:
        return bytes(self._numbers[c] for c in token) if all(c in self._numbers for c in token) else b""

    def cut_bytes(self, text: bytes) -> Ids:
        return tuple(token.id for token in self.core.model.tokenize("".join(self._letters[byte] for byte in text)))


class ByteFallback:
    """Characters, with a mark for the space, and a token <0x..> for each byte of those that the vocabulary lacks.

    A text's first word would get a space before it: not here, as texts are cut in the middle of an answer.
    """

    _BYTE = re.compile("<0x([0-9A-F]{2})>")

    def __init__(self, described: dict[str, Any]) -> None:
        self.core = tokenizer_of(bare(described))

    def spell(self, token: str) -> bytes:
        byte = self._BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()

    def cut_bytes(self, text: bytes) -> Ids:
        found: list[int] = []
        for broken, run in groupby(text.decode(errors="surrogateescape"), key=lambda c: "\udc80" <= c <= "\udcff"):
            part = "".join(run)
            if broken:
                names = [f"<0x{byte:02X}>" for byte in part.encode(errors="surrogateescape")]
                found += [i for i in map(self.core.token_to_id, names) if i is not None]
            else:
                found += self.core.encode(part, add_special_tokens=False).ids
        return tuple(found)


def script_of(tokenizer: Any, label: str) -> Script:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    described = json.loads(backend.to_str()) if backend is not None else {}
    model, decoder = described.get("model") or {}, json.dumps(described.get("decoder"))
    if model.get("type") == "BPE" and "ByteLevel" in decoder:
        return ByteLevel(described)
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        return ByteFallback(described)
    raise UserError(
        f"the tokenizer of {label} is no BPE down to bytes, so its tokens cannot be told in bytes: two models with "
        "different tokenizers work together only where both are (Llama, Qwen, SmolLM, GPT-2, Mistral, Gemma)"
    )


def bare(described: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer without the space that it would put before a text."""
    normalizer, splitter = described.get("normalizer") or {}, described.get("pre_tokenizer") or {}
    parts = [one for one in normalizer.get("normalizers", [normalizer]) if one and one["type"] != "Prepend"]
    if splitter.get("type") == "Metaspace":
        splitter = {**splitter, "prepend_scheme": "never"}
    steps = {"type": "Sequence", "normalizers": parts} if parts else None
    return {**described, "normalizer": steps, "pre_tokenizer": splitter or None}


def tokenizer_of(described: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(described))


def letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it is printable, else one of those
    from 256 on, in order."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(others)) for byte in range(256)]
