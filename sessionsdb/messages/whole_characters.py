"""JSON values whose texts are whole characters, as UTF-8 demands.

The store keeps a lone half of a UTF-16 pair, since a client may cut a text there. A request to a
model can't hold one.
"""

from __future__ import annotations

from typing import Any

from sessionsdb.untrusted_values import is_storable


def whole_characters(value: Any) -> Any:
    """Return a JSON value with the halves of a pair joined, and U+FFFD for each lone half."""
    if isinstance(value, str):
        if is_storable(value):
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {whole_characters(key): whole_characters(one) for key, one in value.items()}
    if isinstance(value, list):
        return [whole_characters(one) for one in value]
    return value
