"""JSON text that every database can store.

A text column holds neither NUL nor lone surrogates. ``dump`` escapes both, and ``parse`` restores
them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sessionsdb.errors import DamagedValue, InvalidMessage
from sessionsdb.untrusted_values import UNSTORABLE, is_storable

REPLACEMENT = "\ufffd"

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(?:u(D[89A-F][0-9A-F]{2})|.)")


def dump(value: Any, *, noun: str = "message") -> str:
    """Return compact JSON that any UTF-8 column can hold. Raises ``InvalidMessage``.

    ``noun`` names the value in the error.

    JSON escapes NUL itself. A lone surrogate is escaped with capital letters (``\\uD800``). No
    other code writes capitals, so ``parse`` does not join two lone surrogates into one character.
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
        raise InvalidMessage(f"{noun} is not JSON: {error}") from None
    if is_storable(text):
        return text
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04X}", text)


def parse(text: str) -> Any:
    """Return the value of JSON text that ``dump`` wrote. Raises ``DamagedValue`` for other text."""
    try:
        if "\\uD" in text:
            text = _ESCAPE.sub(_unescape_surrogate, text)
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise DamagedValue(f"it is no JSON: {error}") from None


def parse_object(text: str) -> dict[str, Any]:
    """Return the JSON object that ``dump`` wrote. Raises ``DamagedValue`` for other text."""
    value = parse(text)
    if type(value) is not dict:
        raise DamagedValue("it is no JSON object")
    return value


def _unescape_surrogate(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else escape[0]


def utf8_size(text: str) -> int:
    """Return the bytes of a storable text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def replace_unstorable(text: str) -> str:
    """Return ``text`` with U+FFFD for each character that a text column can't hold."""
    return text if is_storable(text) else UNSTORABLE.sub(REPLACEMENT, text)
