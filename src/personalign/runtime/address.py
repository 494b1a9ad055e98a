"""Where an endpoint is and which key opens it: neither may show in a message what is secret."""

from __future__ import annotations

import os
from dataclasses import dataclass

from personalign.contracts import UserError, is_open, is_printable


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
        if not is_open(url):  # it is not shown: it may hold a password
            raise UserError(
                f"{self.who}: the url must be like http://localhost:8000/v1, without user, password, query or blanks; "
                f"a key goes into the environment variable {self.key_variable}"
            )
        return url.rstrip("/")

    def key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip()
        if not is_printable(key):
            raise UserError(
                f"{self.who}: the environment variable {self.key_variable} holds characters that no key has"
            )
        return key

    def hide(self, text: str) -> str:
        key = self.key()
        return text.replace(key, "***") if key else text
