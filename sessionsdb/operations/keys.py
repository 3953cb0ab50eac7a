"""Keys of rows, and conditions that select rows by them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, true

from sessionsdb.schema import inbox, mailboxes

SessionKey = tuple[str, str]
"""``(namespace, session id)``"""

MessageKey = tuple[str, str, int]
"""``(namespace, session id, position)``: a receipt with its namespace."""

V = TypeVar("V")


def digest_of(key: SessionKey) -> str:
    """Return the 12 characters that name a session in notifications.

    The bytes of a namespace never contain a NUL, so two keys are never joined to one text. Of a
    million sessions two share a digest with a chance of 1 in 560.
    """
    return hashlib.blake2b("\0".join(key).encode(), digest_size=6).hexdigest()


def chunks(values: Sequence[V], size: int = 400) -> Iterator[Sequence[V]]:
    """Split the values of an ``IN (…)``: databases limit the parameters of a statement."""
    return (values[start : start + size] for start in range(0, len(values), size))


def within(
    namespace: ColumnElement[Any], namespaces: Collection[str] | None
) -> ColumnElement[bool]:
    """Return the condition for rows of these namespaces. ``None`` means all of the database."""
    return true() if namespaces is None else namespace.in_(sorted(namespaces))


def is_mailbox(key: SessionKey) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for the mailbox of a session."""
    return mailboxes.c.namespace == key[0], mailboxes.c.session_id == key[1]


def is_message(namespace: str, session_id: str, position: int) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for one message of an inbox."""
    return (
        inbox.c.namespace == namespace,
        inbox.c.session_id == session_id,
        inbox.c.position == position,
    )
