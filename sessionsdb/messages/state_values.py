"""The JSON of a state: one text for each key."""

from __future__ import annotations

from typing import Any

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument, InvalidMessage
from sessionsdb.messages.codec import check_json_types
from sessionsdb.messages.json_text import dump, parse
from sessionsdb.untrusted_values import is_instance

Changes = dict[str, str | None]
"""Keys with the JSON of their new values. ``None`` removes a key."""


def encode_changes(changes: Any, *, max_bytes: int) -> Changes:
    """Return the JSON of each value. A value that is ``None`` stays ``None``: it removes the key.

    Raises ``InvalidArgument`` for changes that are not a dict, and for a key that is not 1 to 256
    characters of storable text. Also for a value that is not JSON, or larger than ``max_bytes``.
    """
    if not is_instance(changes, dict):
        raise InvalidArgument(f"a state's changes must be a dict, not {type(changes).__name__}")
    try:
        items = list(changes.items())
    except Exception as error:
        raise InvalidArgument(f"the changes can't be read: {type(error).__name__}") from error
    return {
        validation.state_key(key): None if value is None else _encode(key, value, max_bytes)
        for key, value in items
    }


def encode_values(values: Any, *, max_bytes: int) -> dict[str, str]:
    """Return the JSON of each value of a whole state, where ``None`` is a value like any other.

    Raises the same as ``encode_changes``.
    """
    encoded = encode_changes(values, max_bytes=max_bytes)
    return {key: "null" if text is None else text for key, text in encoded.items()}


def _encode(key: Any, value: Any, max_bytes: int) -> str:
    try:
        check_json_types([value], max_bytes, noun="value")
        text = dump(value, noun="value")
    except InvalidMessage as error:
        raise InvalidArgument(f"state key {key!r}: {error}") from None
    except Exception as error:  # from a method of the value
        raise InvalidArgument(f"state key {key!r} can't be read: {type(error).__name__}") from error
    if size_of(text) > max_bytes:
        raise InvalidArgument(
            f"state key {key!r} is {size_of(text)} bytes as JSON, the limit of a whole state is "
            f"{max_bytes}; store large values elsewhere, or raise Limits.state_bytes"
        )
    return text


def decode_value(text: str) -> Any:
    """Return the value as a new object, equal to the encoded one."""
    return parse(text)


def size_of(text: str) -> int:
    """Return the number of bytes of ``text`` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
