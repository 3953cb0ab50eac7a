"""Escape the characters of a text that a reader does not see, or that begin a new line.

An id is any text. Such characters in it could imitate another line of the text around it.
"""

from __future__ import annotations

import json
import unicodedata

_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def escape_hidden(text: str) -> str:
    """Return ``text`` with JSON's escapes for control and format characters and line separators.

    These are the Unicode categories Cc, Cf, Cs, Zl and Zp. JSON on one line keeps its value.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or unicodedata.category(c) not in _HIDDEN else json.dumps(c)[1:-1]
        for c in text
    )
