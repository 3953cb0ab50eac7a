"""Insertions: messages that a turn puts into the middle of its transcript.

The messages behind the place move along, with all that stands beside them. So nothing is lost that
was appended while the handler ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.errors import UnknownSession
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.editing import BEHIND, DELETE_BEHIND
from sessionsdb.operations.transcript_types import NO_ATTRIBUTES, Attributes


class Insertion(NamedTuple):
    """Messages that the commit of a turn inserts behind one ``seq`` of its transcript."""

    namespace: str
    session_id: str
    behind: int
    messages: Sequence[StoredMessage]


_SEQ_AT = Statement("""
SELECT seq FROM messages
WHERE namespace = :namespace AND session_id = :session_id
ORDER BY seq LIMIT 1 OFFSET :place
""")


def seq_at(connection: Connection, namespace: str, session_id: str, place: int) -> int | None:
    """Return the ``seq`` of the message at a place of the transcript, counted from 0."""
    parameters = {"namespace": namespace, "session_id": session_id, "place": place}
    row = _SEQ_AT.row(connection, parameters)
    return None if row is None else int(row[0])


def insert(connection: Connection, request: Insertion) -> bool:
    """Insert messages, and return whether others moved, which is a rewrite of the transcript."""
    dialect = dialect_of(connection)
    namespace, session_id, behind, messages = request
    before = dialect.lock_transcript(connection, namespace, session_id)
    if before is None:
        raise UnknownSession(session_id)
    place = {"namespace": namespace, "session_id": session_id, "keep_through": behind}
    moved = BEHIND.rows(connection, place)
    if moved:
        DELETE_BEHIND.rows(connection, place)
    dialect.write_tail(
        connection,
        namespace,
        session_id,
        [*messages, *(StoredMessage(*row[:3]) for row in moved)],
        [*[NO_ATTRIBUTES] * len(messages), *(Attributes._make(row[3:]) for row in moved)],
        uuid4().hex,
        message_count=before.message_count + len(messages),
        rewrites=1 if moved else 0,
    )
    return bool(moved)
