"""Digests that tell whether two calls have the same arguments.

Objects are the same whatever the order of their keys, as in Python and in JSON.
"""

from __future__ import annotations

import hashlib
import json

from sessionsdb.messages.codec import StoredMessage
from sessionsdb.messages.json_text import parse


def digest(*values: object) -> str:
    """Return the digest of values that JSON has."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def message_values(message: StoredMessage) -> tuple[str | None, ...]:
    """Return the values of a message for ``digest``."""
    if message.payload is None:
        return message
    return (message.role, "", _in_order(message.payload))


def extra_values(extra: str | None) -> tuple[str, ...]:
    """Return the values of an author and metadata. A message without them has the digest that it
    always had."""
    return () if extra is None else (_in_order(extra),)


def _in_order(text: str) -> str:
    return json.dumps(parse(text), sort_keys=True)
