"""A chat completions endpoint that is asked for verdicts, and what it has said so far, kept on disk by content."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from personalign.contracts import UserError
from personalign.runtime.files import content_hash, write_atomic
from personalign.runtime.progress import track

LARGEST = 1 << 24  # bytes of a reply that are read
LONGEST = 60.0  # seconds that an endpoint's own wish to wait (Retry-After) is followed
SHOWN = 200  # characters of a reply that a message shows
# No other try would help: nobody listens, the name is unknown, the certificate is not trusted.
FINAL = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)

Reads = Callable[[str], float | None]


class _Again(Exception):
    """A failure that may pass: what it was, and the seconds that the endpoint asks to wait."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An answer from elsewhere is not followed: the key is for this endpoint alone."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """`{url}/chat/completions` as OpenAI's interface has it, asked by `concurrency` threads.

    The key is read from the environment when a question is sent, and nowhere kept. What comes back is kept under
    `cache`, named by the hash of model, prompt, temperature and max_tokens: a question that was answered is not sent
    again, whatever the url.
    """

    url: str | None
    url_variable: str
    key_variable: str
    model: str
    temperature: float | None
    max_tokens: int
    limit_name: str
    timeout: float
    retries: int
    backoff: float
    concurrency: int
    cache: str

    def ask(self, prompts: Sequence[str], reminder: str, reads: Reads) -> list[float]:
        """What `reads` makes of the reply to each prompt. A reply that it cannot read (None), or that was cut, is asked
        for once more with the reminder below the prompt.

        Raises UserError for an endpoint that does not answer and for a second reply without a verdict; all replies
        before it have been kept.
        """
        unique = list(dict.fromkeys(prompts))
        kept = {prompt: self._kept(prompt, reads) for prompt in unique}
        found = {prompt: value for prompt, value in kept.items() if value is not None}
        missing = [prompt for prompt in unique if prompt not in found]
        if missing:
            found |= self._ask_all(missing, reminder, reads)
        return [found[prompt] for prompt in prompts]

    def _ask_all(self, prompts: Sequence[str], reminder: str, reads: Reads) -> dict[str, float]:
        found = {}
        stop = threading.Event()
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            asked = {pool.submit(self._verdict, prompt, reminder, reads, stop): prompt for prompt in prompts}
            with track("judging", len(asked), "questions") as bar:
                for future in as_completed(asked):
                    found[asked[future]] = future.result()
                    bar.advance()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        return found

    def _verdict(self, prompt: str, reminder: str, reads: Reads, stop: threading.Event) -> float:
        for asked in (prompt, f"{prompt}\n\n{reminder}"):
            reply, cut = self._reply(asked, stop)
            value = None if cut else reads(reply)
            if value is not None:
                write_atomic(self._file(prompt), json.dumps({"model": self.model, "reply": reply}))
                return value
        how = f"was cut at max_tokens={self.max_tokens} (raise it) and" if cut else "holds none, and"
        raise UserError(
            f"judge: model {self.model} was asked twice for a verdict; its reply {how} begins {_start(reply)}: "
            "choose a model that follows the prompt, or change the prompt"
        )

    def _file(self, prompt: str) -> Path:
        name = content_hash([self.model, prompt, self.temperature, self.max_tokens])
        return Path(self.cache).expanduser() / "judge" / name[:2] / f"{name}.json"

    def _kept(self, prompt: str, reads: Reads) -> float | None:
        """The verdict that is on disk; a damaged file counts as none."""
        try:
            return reads(str(json.loads(self._file(prompt).read_bytes())["reply"]))
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _reply(self, prompt: str, stop: threading.Event) -> tuple[str, bool]:
        """The reply's text, and whether it was cut; tried again while the failure may pass."""
        values: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        values[self.limit_name] = self.max_tokens
        if self.temperature is not None:
            values["temperature"] = self.temperature
        body = json.dumps(values).encode()
        for attempt in range(self.retries + 1):
            try:
                return self._read(self._send(body))
            except _Again as error:
                reason = str(error)
                wait = error.wait if error.wait is not None else self.backoff * 2**attempt
            if attempt < self.retries and stop.wait(min(wait, LONGEST)):
                break
        raise UserError(
            f"judge: {self._place()} failed {self.retries + 1} times in a row, at last with {reason}: run it again "
            "later (what was answered is kept), or change concurrency, retries or timeout"
        )

    def _read(self, raw: bytes) -> tuple[str, bool]:
        try:
            choice = json.loads(raw)["choices"][0]
            text, cut = choice["message"]["content"] or "", choice.get("finish_reason") == "length"
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(
                f"judge: {self._place()} did not answer as chat completions do, but with {self._shown(raw)}: "
                "check the url, which usually ends in /v1"
            ) from None
        return self._hide(text), cut

    def _send(self, body: bytes) -> bytes:
        request = urllib.request.Request(f"{self._place()}/chat/completions", body, method="POST")
        request.add_header("Content-Type", "application/json")
        if key := self._key():
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
                return bytes(response.read(LARGEST))
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, FINAL):
                raise UserError(
                    f"judge: {self._place()} cannot be reached ({cause}): start the endpoint, or correct the url "
                    f"({self.url_variable})"
                ) from None
            raise _Again(self._hide(str(cause)) or type(cause).__name__) from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What a status other than success means, and what helps."""
        try:
            said = self._shown(error.read(LARGEST))
        except (OSError, http.client.HTTPException):
            said = "nothing more"
        if error.code in (408, 429) or error.code >= 500:
            return _Again(f"status {error.code}, {said}", _seconds(error.headers.get("Retry-After")))
        remedy = f"check the model ({self.model}) and the settings of the judge"
        if error.code in (401, 403):
            remedy = f"put a key that it accepts into the environment variable {self.key_variable}"
        elif error.code == 404:
            remedy = f"check the model ({self.model}) and the url, which usually ends in /v1"
        elif error.code < 400:
            remedy = "the endpoint has moved: give its address as it is now"
        return UserError(f"judge: {self._place()} answered with status {error.code}, {said}: {remedy}")

    def _place(self) -> str:
        """The url, which holds nothing secret. Raises UserError where it does, or is none."""
        url = (self.url or os.environ.get(self.url_variable, "")).strip()
        if not url:
            raise UserError(
                f"judge: no endpoint is named: set the environment variable {self.url_variable}, or url, to something "
                "like http://localhost:8000/v1"
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        # What does not fit is not shown: it may hold a password.
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        plain = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"
        if parts.scheme not in ("http", "https") or plain.lower() != url.lower() or not _printable(url):
            raise UserError(
                "judge: the url must be like http://localhost:8000/v1, without user, password, query or blanks; a key "
                f"goes into the environment variable {self.key_variable}"
            )
        return url.rstrip("/")

    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip()
        if not _printable(key):
            raise UserError(f"judge: the environment variable {self.key_variable} holds characters that no key has")
        return key

    def _hide(self, text: str) -> str:
        key = self._key()
        return text.replace(key, "***") if key else text

    def _shown(self, raw: bytes) -> str:
        """The start of a body for a message: an error's own words where it is JSON."""
        text = raw.decode("utf-8", "replace")
        try:
            body = json.loads(text)
            inner = body.get("error", body)
            text = inner["message"] if isinstance(inner, dict) else inner
        except (ValueError, LookupError, AttributeError):
            pass
        return _start(self._hide(str(text)))


def _printable(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is left to our own pace."""
    return float(header) if header and header.isascii() and header.isdigit() else None


def _start(text: str) -> str:
    short = " ".join(text.split())
    return repr(short if len(short) <= SHOWN else f"{short[:SHOWN]}...")
