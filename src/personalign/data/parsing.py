"""Turns the bytes of a data file into rows with their lines; nothing in them can raise.

A file is JSON lines, one JSON array or one JSON object over several lines; in UTF-8, with or without a byte order
mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NoReturn

TYPES = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def parse(data: bytes) -> Iterator[tuple[str, object]]:
    """(place, value) for each row of a file; what cannot be read is the ValueError that tells why."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        yield from _array(data)
        return
    if data.lstrip().partition(b"\n")[0].strip() == b"{":  # no whole line of JSON lines
        yield _object(data)
        return
    for line, raw in enumerate(data.split(b"\n"), start=1):
        if raw.strip():
            yield f"line {line}", _line(raw)


def _line(raw: bytes) -> object:
    try:
        text = raw.decode().strip()
        value, end = _decode(text, 0)
        if end < len(text):
            raise ValueError(f"not JSON: there is more after the first value, at column {end + 1}")
    except ValueError as error:
        return error
    return value


def _object(data: bytes) -> tuple[str, object]:
    """The one object, at its first line or at the line that breaks it."""
    body = data.lstrip()
    line = 1 + data.count(b"\n", 0, len(data) - len(body))
    value = _line(body)
    if isinstance(value, json.JSONDecodeError):
        line += value.lineno - 1
    elif isinstance(value, UnicodeDecodeError):
        line += body.count(b"\n", 0, value.start)
    return f"line {line}", value


def _array(data: bytes) -> Iterator[tuple[str, object]]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        yield f"line {line}", error
        return
    line, seen = 1, 0
    for item, (at, value) in enumerate(_items(text), start=1):
        line, seen = line + text.count("\n", seen, at), at
        yield f"line {line} (item {item})", value


def _items(text: str) -> Iterator[tuple[int, object]]:
    """(position, value) of the items of a JSON array; the first error ends it."""
    at = _skip(text, text.index("[") + 1)
    while text[at : at + 1] != "]":
        try:
            value, end = _decode(text, at)
        except ValueError as error:
            yield getattr(error, "pos", at), error
            return
        yield at, value
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            yield at, ValueError("not JSON: expected ',' or ']' after an item of the array")
            return
    rest = _skip(text, at + 1)
    if rest < len(text):
        yield rest, ValueError("not JSON: there is more after the closing ']'")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _decode(text: str, at: int) -> tuple[object, int]:
    try:
        value, end = _DECODER.raw_decode(text, at)
        if _HALF.search(text, at, end):  # half a pair would break every later encoding
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("not JSON that can be read: it is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeEncodeError):
        raise
    except ValueError:
        raise ValueError("not JSON that can be read: a number is not finite or too long") from None
    return value, end


def why_no_row(value: object) -> str:
    if isinstance(value, json.JSONDecodeError):
        return f"not JSON: {value.msg}, at column {value.colno}"
    if isinstance(value, UnicodeDecodeError):
        wide = " (it looks like UTF-16)" if value.object[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        return f"not UTF-8, at byte 0x{value.object[value.start]:02x}{wide}: save the file as UTF-8"
    if isinstance(value, UnicodeEncodeError):
        return "a \\u escape is half of a surrogate pair: write the character itself"
    if isinstance(value, ValueError):
        return str(value)
    return f"expected an object {{...}}, found {TYPES[type(value)]}"
