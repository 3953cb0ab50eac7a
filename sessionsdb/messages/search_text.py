"""The text of a message that can be searched, and the snippet of a hit.

Searched is what users and agents said: no reasoning of a model, and no result of a tool, which may
be a whole web page. The arguments of a tool call are searched.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from sessionsdb.errors import DamagedValue
from sessionsdb.messages.json_text import parse_object, replace_unstorable
from sessionsdb.messages.rendering import render_text
from sessionsdb.messages.search_words import Query, is_hit, places_of

SNIPPET_CHARACTERS = 200
"""The maximum of characters in a snippet."""

_BEFORE_HIT = 60
"""The characters of a snippet before its first hit, about."""

_RESULT = re.compile(r"(?:.*_)?(?:output|result)")
_RESULT_KEYS = frozenset(("functionResponse", "function_response", "toolResult"))
_HIDDEN = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]+")


class Snippet(NamedTuple):
    text: str
    marks: list[tuple[int, int]]
    """The places of the words that the query asks for: start, and end behind the last character."""


def searchable_text(role: str, content: str, payload: str | None) -> str:
    """Return the text of a stored message for the search. Empty: nothing of it is searched.

    So it is for a tool's result, and for a damaged message.
    """
    if role == "tool":
        return ""
    if payload is None:
        return content
    try:
        message = parse_object(payload)
    except DamagedValue:
        return ""  # the messages behind it are still to be indexed
    if _is_result(message):
        return ""
    shown = {
        key: [block for block in value if not _is_result(block)]
        if key in ("content", "parts") and isinstance(value, list)
        else value
        for key, value in message.items()
    }
    return replace_unstorable(render_text(shown))


def _is_result(block: Any) -> bool:
    if not isinstance(block, dict):
        return False
    kind = block.get("type")
    if isinstance(kind, str) and _RESULT.fullmatch(kind.replace("-", "_")):
        return True
    return not _RESULT_KEYS.isdisjoint(block)


def snippet_of(query: Query, text: str) -> Snippet:
    """Return the part of a text around its first hit, as one line without control characters."""
    first = next((w.start for w in places_of(text) if is_hit(query, w.text)), 0)
    start = max(0, first - _BEFORE_HIT)
    if start > 0:
        space = text.find(" ", start, first)
        start = start if space < 0 else space + 1
    end = start + SNIPPET_CHARACTERS - 2
    part = _HIDDEN.sub(" ", text[start:end]).strip()
    shown = f"{'…' if start > 0 else ''}{part}{'…' if end < len(text) else ''}"
    return Snippet(shown, _marks(query, shown))


def _marks(query: Query, text: str) -> list[tuple[int, int]]:
    marks: list[tuple[int, int]] = []
    for word in places_of(text):
        if not is_hit(query, word.text):
            continue
        if marks and marks[-1][1] == word.start:  # characters of a script without spaces
            marks[-1] = (marks[-1][0], word.end)
        else:
            marks.append((word.start, word.end))
    return marks
