"""Where an endpoint is and which key opens it: neither may show in a message what is secret."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from personalign.contracts import UserError


@dataclass(frozen=True, kw_only=True)
class Address:
    """A url, or the environment variable that holds it, and the variable that holds the key; messages begin with `who`.

    The key is read from the environment when a question is sent, and nowhere kept.
    """

    who: str
    url: str | None
    url_variable: str
    key_variable: str

    def place(self) -> str:
        """The url, which holds nothing secret. Raises UserError where it does, or is none."""
        url = (self.url or os.environ.get(self.url_variable, "")).strip()
        if not url:
            raise UserError(
                f"{self.who}: no endpoint is named: set the environment variable {self.url_variable}, or url, to "
                "something like http://localhost:8000/v1"
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
                f"{self.who}: the url must be like http://localhost:8000/v1, without user, password, query or blanks; "
                f"a key goes into the environment variable {self.key_variable}"
            )
        return url.rstrip("/")

    def key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip()
        if not _printable(key):
            raise UserError(
                f"{self.who}: the environment variable {self.key_variable} holds characters that no key has"
            )
        return key

    def hide(self, text: str) -> str:
        key = self.key()
        return text.replace(key, "***") if key else text


def _printable(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)
