"""Heads: the row of a session with all counters of its transcript, for adapters of frameworks.

A framework's store writes a transcript under conditions of its own: the writer's copy is the newest
one, or only new messages are written. So it locks the head, decides, and appends in the same
transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, delete, select

from sessionsdb.engine.clock import as_utc
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.messages.json_text import parse
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import chunks
from sessionsdb.operations.registry import Registration
from sessionsdb.operations.transcript_types import NO_ATTRIBUTES
from sessionsdb.schema import messages


class Head(NamedTuple):
    """One session. While it is locked, its transcript does not change."""

    id: str
    channel: str
    peer: str
    parent_id: str | None
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    """When the transcript was changed last."""
    incarnation: str | None
    """Another one after the session was deleted and created again."""
    version: int
    rewrites: int
    last_seq: int
    message_count: int

    @property
    def revision(self) -> str:
        """A text that changes when messages are appended, removed or replaced.

        A purge of old messages leaves it as it is: the end of the transcript stays the same.
        """
        return f"{self.incarnation}:{self.rewrites}:{self.last_seq}"


COLUMNS = ", ".join(f"s.{name}" for name in Head._fields)

_READ = Statement(f"""
SELECT {COLUMNS} FROM sessions AS s WHERE s.namespace = :namespace AND s.id = :id
""")

_LOCK = Statement(f"""
SELECT {COLUMNS} FROM sessions AS s WHERE s.namespace = :namespace AND s.id = :id
FOR NO KEY UPDATE
""")

_OF_PARENT = Statement(f"""
SELECT {COLUMNS} FROM sessions AS s WHERE s.namespace = :namespace AND s.parent_id = :parent
""")

# ---- reading -----------------------------------------------------------------------------------


def read(connection: Connection, namespace: str, session_id: str) -> Head | None:
    """Return the head of a session, or ``None`` if there is no such session."""
    row = _READ.row(connection, {"namespace": namespace, "id": session_id})
    return None if row is None else head_of(row)


def lock(connection: Connection, namespace: str, session_id: str) -> Head | None:
    """Lock a session until the commit, and return its head, or ``None`` without a session."""
    statement = _LOCK if dialect_of(connection).has_row_locks else _READ
    row = statement.row(connection, {"namespace": namespace, "id": session_id})
    return None if row is None else head_of(row)


def of_parent(connection: Connection, namespace: str, parent: str) -> list[Head]:
    """Return the children of a session, in no order."""
    return list(
        map(head_of, _OF_PARENT.rows(connection, {"namespace": namespace, "parent": parent}))
    )


def head_of(row: Row) -> Head:
    """Return the head that a row of ``COLUMNS`` has."""
    head = Head._make(row)
    return head._replace(
        metadata=parse(row[4]) if row[4] else {},
        created_at=as_utc(head.created_at),
        updated_at=as_utc(head.updated_at),
    )


def keys(connection: Connection, namespace: str, session_id: str) -> list[str]:
    """Return the keys of a session's messages, in order. Messages without a key have none."""
    statement = (
        select(messages.c.key)
        .where(
            messages.c.namespace == namespace,
            messages.c.session_id == session_id,
            messages.c.key.is_not(None),
        )
        .order_by(messages.c.seq)
    )
    return [key for key in connection.execute(statement).scalars() if key is not None]


def taken_keys(
    connection: Connection, namespace: str, session_id: str, keys: Sequence[str]
) -> set[str]:
    """Return the keys that messages of the session have already."""
    taken: set[str] = set()
    for chunk in chunks(keys):
        taken |= set(
            connection.execute(
                select(messages.c.key).where(
                    messages.c.namespace == namespace,
                    messages.c.key.in_(chunk),
                    messages.c.session_id == session_id,
                )
            ).scalars()
        )
    return taken


# ---- writing -----------------------------------------------------------------------------------


def create(connection: Connection, registration: Registration) -> Head | None:
    """Create a session, and return its head, or ``None`` if it exists.

    With a parent it is a child of that session, which must exist.
    """
    root, depth = None, 0
    if registration.parent is not None:
        parent = registry.lock_parent(connection, registration.namespace, registration.parent)
        registry.check_id_bytes(registration.parent, registration.session_id)
        root, depth = parent.root_id or registration.parent, parent.depth + 1
    if not registry.create(connection, registration, root=root, depth=depth):
        return None
    return lock(connection, registration.namespace, registration.session_id)


def append(
    connection: Connection,
    namespace: str,
    head: Head,
    added: Sequence[StoredMessage],
    keys: Sequence[str | None] = (),
    *,
    removed: int = 0,
) -> Head:
    """Append messages to a locked session, and return its head behind them.

    ``keys``: one or ``None`` for each message, which no message of the session has. ``removed``:
    the number of messages that the caller has removed in this transaction.
    """
    attributes = [
        NO_ATTRIBUTES._replace(key=keys[index]) if keys else NO_ATTRIBUTES
        for index in range(len(added))
    ]
    written = dialect_of(connection).write_tail(
        connection,
        namespace,
        head.id,
        added,
        attributes,
        uuid4().hex,
        message_count=head.message_count - removed + len(added),
        rewrites=1 if removed else 0,
    )
    assert written is not None  # the session is locked
    version, base = written
    return head._replace(
        version=version,
        rewrites=head.rewrites + (1 if removed else 0),
        last_seq=base + len(added),
        message_count=head.message_count - removed + len(added),
    )


def remove(connection: Connection, namespace: str, head: Head, seq: int) -> Head:
    """Remove one message of a locked session, and return its head."""
    connection.execute(
        delete(messages).where(
            messages.c.namespace == namespace,
            messages.c.session_id == head.id,
            messages.c.seq == seq,
        )
    )
    return append(connection, namespace, head, [], removed=1)
