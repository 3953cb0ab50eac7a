"""Keys of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar

SessionKey = tuple[str, str]
"""``(namespace, session id)``"""

Fence = tuple[SessionKey, int]
"""The key of a session and the epoch of a lease: it distinguishes this lease from all others."""

MessageKey = tuple[str, str, int]
"""``(namespace, session id, position)``: a receipt with its namespace."""

V = TypeVar("V")


def digest_of(key: SessionKey) -> str:
    """Return the 12 characters that name a session in notifications.

    The bytes of a namespace never contain a NUL, so two keys are never joined to one text. Of a
    million sessions two share a digest with a chance of 1 in 560.
    """
    return hashlib.blake2b("\0".join(key).encode(), digest_size=6).hexdigest()


def ids_by_namespace(keys: Collection[SessionKey]) -> dict[str, list[str]]:
    """Return the ids of these sessions in order, by their namespace."""
    found: dict[str, list[str]] = {}
    for namespace, session_id in sorted(keys):
        found.setdefault(namespace, []).append(session_id)
    return found


def chunks(values: Sequence[V], size: int = 400) -> Iterator[Sequence[V]]:
    """Split the values of an ``IN (…)``: databases limit the parameters of a statement."""
    return (values[start : start + size] for start in range(0, len(values), size))
