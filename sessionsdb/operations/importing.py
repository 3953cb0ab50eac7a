"""Save the transcript of another program's file, with the times of its messages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import uuid4

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_stored
from sessionsdb.engine.statement import Statement
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.history_page import FIRST_SEQ
from sessionsdb.operations.registry import STORE_CHANNEL, Registration
from sessionsdb.operations.saving import equal
from sessionsdb.operations.transcript_types import NO_ATTRIBUTES, Attributes

PAGE = 100
"""Stored messages that are compared at once. A message may have megabytes."""

_NEXT = Statement("""
SELECT seq, role, content, payload FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq > :after
ORDER BY seq LIMIT :limit
""")


class TranscriptImport(NamedTuple):
    """A transcript to save."""

    namespace: str
    session_id: str
    messages: Sequence[StoredMessage]
    times: Sequence[datetime | None]
    """For each message when it was sent."""
    parent: str | None = None
    """The parent of the session, if the session is created now and its parent exists."""


class OtherTranscript(Exception):
    """The session has another message than the file, so that it is not continued by it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"its message {number} is another one than in the file")


def import_transcript(connection: Connection, request: TranscriptImport) -> bool:
    """Append the messages that a session does not have yet. Return whether that changed it.

    No message of the session is changed or removed. A transcript that begins with all messages of
    the request stays as it is. One that is the beginning of the request gets the rest. Raises
    ``OtherTranscript`` for any other one, and ``SessionEnded`` for the parent of a new session.
    """
    namespace, session_id, parent = request.namespace, request.session_id, request.parent
    dialect = dialect_of(connection)
    if (
        parent is not None
        and registry.exists(connection, namespace, parent)
        and not registry.exists(connection, namespace, session_id)
    ):
        registration = Registration(namespace, session_id, STORE_CHANNEL, session_id, parent=parent)
        registry.register(connection, registration, exist_ok=True)
    created = False
    # Locked until the commit: nothing is appended between the comparison and the write.
    while dialect.lock_version(connection, namespace, session_id) is None:
        created = registry.create_for_store(
            connection, namespace, session_id, writes=bool(request.messages)
        )
    known = 0 if created else _compare(connection, request)
    if known == len(request.messages):
        return created
    attributes = [_attributes(connection, time) for time in request.times[known:]]
    dialect.write_tail(
        connection,
        namespace,
        session_id,
        request.messages[known:],
        attributes,
        uuid4().hex,
        message_count=None,
        rewrites=0,
    )
    return True


def _compare(connection: Connection, request: TranscriptImport) -> int:
    """Return how many of the messages the session has. Raises ``OtherTranscript``."""
    known, after = 0, FIRST_SEQ
    while known < len(request.messages):
        expected = request.messages[known : known + PAGE]
        rows = _NEXT.rows(
            connection,
            {
                "namespace": request.namespace,
                "session_id": request.session_id,
                "after": after,
                "limit": len(expected),
            },
        )
        for (seq, role, content, payload), message in zip(rows, expected, strict=False):
            if not equal((role, content, payload), message):
                raise OtherTranscript(known + 1)
            known, after = known + 1, seq
        if len(rows) < len(expected):
            break
    return known


def _attributes(connection: Connection, time: datetime | None) -> Attributes:
    return NO_ATTRIBUTES if time is None else Attributes(sent_at=as_stored(connection, time))
