"""Text from outside made fit to show, and pieces of HTML in which all of it is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

# Characters that a page or file may not hold (controls, lone surrogates) or that reorder what stands around them.
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")


def fit(text: object) -> str:
    """Text with each unfit character made visible, for pages, pictures, files and terminals alike."""
    return UNFIT.sub("\ufffd", str(text).replace("\r\n", "\n"))


def safe(text: object) -> str:
    """Fit text for a page, escaped as element or attribute."""
    return html.escape(fit(text))


def minus(shown: str) -> str:
    """A shown number, escaped, with a minus sign as wide as the plus."""
    return safe(shown.replace("-", "\u2212"))


def element(tag: str, content: str, **attributes: str) -> str:
    """An element around ready HTML; attributes are escaped, and a trailing underscore in a name is dropped."""
    inside = "".join(f' {name.rstrip("_")}="{safe(value)}"' for name, value in attributes.items() if value)
    return f"<{tag}{inside}>{content}</{tag}>"


def section(title: str, *content: str) -> str:
    """A heading and what stands under it; nothing when there is nothing."""
    return "\n".join([element("h2", safe(title)), *content]) if any(content) else ""


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table of texts that scrolls by itself on a narrow screen."""
    head = element("tr", "".join(element("th", safe(cell)) for cell in header))
    body = "\n".join(element("tr", "".join(element("td", safe(cell)) for cell in row)) for row in rows)
    table = element("table", f"<thead>{head}</thead><tbody>{body}</tbody>", class_="text")
    return element("div", table, class_="scroll")
