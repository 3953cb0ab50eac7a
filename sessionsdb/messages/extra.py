"""The properties of a message that few messages have. They stand beside it, never in its payload.

They are a JSON object in the column ``extra``: ``author``, a text, and ``metadata``, a JSON object.
Both were given with the message. The mark of a stopped reply is a key beside them, so metadata of
a caller can't imitate the mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sessionsdb.messages.json_text import dump, parse_object

INTERRUPTED = '{"interrupted":true}'
"""The extra of a reply that was stopped before its end."""


class Extra(NamedTuple):
    author: str | None = None
    metadata: dict[str, Any] | None = None
    interrupted: bool = False


NO_EXTRA = Extra()


def is_interrupted(extra: str | None) -> bool:
    """Return whether a message is the streamed part of a reply that was stopped."""
    return extra == INTERRUPTED


def encode_extra(author: str | None, metadata: dict[str, Any] | None) -> str | None:
    """Return the text for the column ``extra``. Raises ``InvalidMessage``."""
    given: dict[str, Any] = {}
    if author is not None:
        given["author"] = author
    if metadata is not None:
        given["metadata"] = metadata
    return dump(given) if given else None


def decode_extra(extra: str | None) -> Extra:
    """Return the properties of a message. Most messages have none. Raises ``DamagedValue``."""
    if extra is None:
        return NO_EXTRA
    given = parse_object(extra)
    metadata = given.get("metadata")
    if is_interrupted(extra):
        metadata = {"interrupted": True}  # shown, not stored: such a reply was given no metadata
    return Extra(given.get("author"), metadata, is_interrupted(extra))


def extra_fields(extra: str | None) -> Mapping[str, Any]:
    """Return the properties of a message as the fields of a ``SessionMessage``."""
    return _NO_FIELDS if extra is None else decode_extra(extra)._asdict()


_NO_FIELDS = NO_EXTRA._asdict()
