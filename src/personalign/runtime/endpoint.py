"""A chat completions endpoint, and what it has said so far, kept on disk by content."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

from personalign.contracts import NaturalInt, NonNegativeFloat, OpenUrl, PositiveFloat, PositiveInt, UserError
from personalign.runtime.address import Address
from personalign.runtime.files import content_hash, write_atomic

LARGEST = 1 << 24  # bytes of a reply that are read
LONGEST = 60.0  # seconds that an endpoint's own wish to wait (Retry-After) is followed
SHOWN = 200  # characters of a reply that a message shows
# No other try would help: nobody listens, the name is unknown, the certificate is not trusted.
FINAL = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)

Asked = TypeVar("Asked")
Said = TypeVar("Said")


class Reply(NamedTuple):
    """What was said: the text, whether it was cut at the limit, and the tokens of prompt and reply where they are
    told, else 0."""

    text: str
    cut: bool
    read: int
    made: int


class _Again(Exception):
    """A failure that may pass: what it was, and the seconds that the endpoint asks to wait."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An answer from elsewhere is not followed: the key is for this endpoint alone."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class EndpointKeys(TypedDict):
    """What a part that asks an endpoint is told of it."""

    url: OpenUrl | None
    url_variable: str
    key_variable: str
    model: str
    limit_name: Literal["max_tokens", "max_completion_tokens"]
    timeout: PositiveFloat
    retries: NaturalInt
    backoff: NonNegativeFloat
    concurrency: PositiveInt
    cache: str


@dataclass(frozen=True, kw_only=True)
class Endpoint(Address):
    """`{url}/chat/completions` as OpenAI's interface has it, asked by `concurrency` threads.

    What comes back may be kept under `cache`, named by the hash of the model and of what was asked: that is not sent
    again, whatever the url.
    """

    model: str
    limit_name: str
    timeout: float
    retries: int
    backoff: float
    concurrency: int
    cache: str

    def each(
        self, asked: Sequence[Asked], ask: Callable[[Asked, threading.Event], Said]
    ) -> Iterator[tuple[Asked, Said]]:
        """What `ask` finds out, each as soon as it is known. It is told by the event to give up, as all are when one
        has failed or nobody waits any more."""
        stop = threading.Event()
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            coming = {pool.submit(ask, one, stop): one for one in asked}
            for future in as_completed(coming):
                yield coming[future], future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def kept(self, content: object) -> dict[str, Any] | None:
        """What is on disk for a question; a damaged file counts as nothing."""
        try:
            found = json.loads(self._file(content).read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, content: object, values: Mapping[str, Any]) -> None:
        write_atomic(self._file(content), json.dumps({"model": self.model, **values}))

    def _file(self, content: object) -> Path:
        name = content_hash([self.model, *content] if isinstance(content, list) else [self.model, content])
        return Path(self.cache).expanduser() / self.who / name[:2] / f"{name}.json"

    def say(
        self, messages: Sequence[Mapping[str, str]], max_tokens: int, stop: threading.Event, **values: Any
    ) -> Reply:
        """The reply to a chat; tried again while the failure may pass. `values` are sent as they are, None is not.

        Raises UserError for an endpoint that does not answer as it should.
        """
        body = json.dumps(
            {
                "model": self.model,
                "messages": list(messages),
                self.limit_name: max_tokens,
                **{name: value for name, value in values.items() if value is not None},
            }
        ).encode()
        for attempt in range(self.retries + 1):
            try:
                return self._read(self._send(body))
            except _Again as error:
                reason = str(error)
                wait = error.wait if error.wait is not None else self.backoff * 2**attempt
            if attempt < self.retries and stop.wait(min(wait, LONGEST)):
                break
        raise UserError(
            f"{self.who}: {self.place()} failed {self.retries + 1} times in a row, at last with {reason}: run it "
            "again later (what was answered is kept), or change concurrency, retries or timeout"
        )

    def _read(self, raw: bytes) -> Reply:
        try:
            body = json.loads(raw)
            choice = body["choices"][0]
            text, cut = choice["message"]["content"] or "", choice.get("finish_reason") == "length"
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(
                f"{self.who}: {self.place()} did not answer as chat completions do, but with {self._shown(raw)}: "
                "check the url, which usually ends in /v1"
            ) from None
        text = text.encode(errors="replace").decode()  # half a character, which JSON can hold, is no text
        return Reply(self.hide(text), cut, _count(body, "prompt_tokens"), _count(body, "completion_tokens"))

    def _send(self, body: bytes) -> bytes:
        request = urllib.request.Request(f"{self.place()}/chat/completions", body, method="POST")
        request.add_header("Content-Type", "application/json")
        if key := self.key():
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
                raw = bytes(response.read(LARGEST))
                if response.length:
                    raise _Again(f"a reply that breaks off after {len(raw)} bytes")
                return raw
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, FINAL):
                raise UserError(
                    f"{self.who}: {self.place()} cannot be reached ({cause}): start the endpoint, or correct the url "
                    f"({self.url_variable})"
                ) from None
            raise _Again(self.hide(str(cause)) or type(cause).__name__) from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What a status other than success means, and what helps."""
        try:
            said = self._shown(error.read(LARGEST))
        except (OSError, http.client.HTTPException):
            said = "nothing more"
        if error.code in (408, 429) or error.code >= 500:
            return _Again(f"status {error.code}, {said}", _seconds(error.headers.get("Retry-After")))
        remedy = f"check the model ({self.model}) and the settings of the {self.who}"
        if error.code in (401, 403):
            remedy = f"put a key that it accepts into the environment variable {self.key_variable}"
        elif error.code == 404:
            remedy = f"check the model ({self.model}) and the url, which usually ends in /v1"
        elif error.code < 400:
            remedy = "the endpoint has moved: give its address as it is now"
        return UserError(f"{self.who}: {self.place()} answered with status {error.code}, {said}: {remedy}")

    def _shown(self, raw: bytes) -> str:
        """The start of a body for a message: an error's own words where it is JSON."""
        text = raw.decode("utf-8", "replace")
        try:
            body = json.loads(text)
            inner = body.get("error", body)
            text = inner["message"] if isinstance(inner, dict) else inner
        except (ValueError, LookupError, AttributeError):
            pass
        return start(self.hide(str(text)))


def _count(body: Mapping[str, Any], name: str) -> int:
    usage = body.get("usage")
    count = usage.get(name) if isinstance(usage, Mapping) else None
    return count if type(count) is int and count > 0 else 0


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is left to our own pace."""
    return float(header) if header and header.isascii() and header.isdigit() else None


def start(text: str) -> str:
    """How a text begins, for a message."""
    short = " ".join(text.split())
    return repr(short if len(short) <= SHOWN else f"{short[:SHOWN]}...")
