"""JSON text that every database can store, and back.

A text column holds neither NUL nor lone surrogates, so both are escaped on the way in.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sessionsdb.errors import InvalidMessage

REPLACEMENT = "\ufffd"

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(?:u(D[89A-F][0-9A-F]{2})|.)")


def dump(value: Any) -> str:
    """Compact JSON that any UTF-8 column can hold.

    NUL is escaped as JSON wants it. A surrogate that stands for itself is escaped with capitals,
    which nothing else here writes: two of them in a row must not be read as one character.
    """
    try:
        text = json.dumps(
            value,
            ensure_ascii=False,
            allow_nan=False,
            check_circular=False,
            separators=(",", ":"),
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"message is not JSON: {error}") from None
    if is_storable(text):
        return text
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04X}", text)


def parse(text: str) -> Any:
    """Read JSON text that ``dump`` wrote."""
    if "\\uD" in text:
        text = _ESCAPE.sub(_unescape_surrogate, text)
    return json.loads(text)


def _unescape_surrogate(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else escape[0]


def is_storable(text: str) -> bool:
    if text.isascii():  # known without looking
        return "\x00" not in text
    return text.isprintable() or _UNSTORABLE.search(text) is None


def storable(text: str) -> str:
    """``text`` with what a text column can't hold replaced by U+FFFD."""
    return text if is_storable(text) else _UNSTORABLE.sub(REPLACEMENT, text)
