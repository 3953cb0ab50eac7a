"""Save the transcript of another program's file, with the times of its messages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import registry, saving
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.registry import STORE_CHANNEL, Registration


class TranscriptImport(NamedTuple):
    """A transcript to save."""

    namespace: str
    session_id: str
    messages: Sequence[StoredMessage]
    times: Sequence[datetime | None]
    """For each message when it was sent."""
    parent: str | None = None
    """The parent of the session, if the session is created now and its parent exists."""


def import_transcript(connection: Connection, request: TranscriptImport) -> bool:
    """Make a session's transcript equal to the imported one. Return whether that changed it.

    Messages that the session has already keep their times. Raises ``SessionEnded`` for the parent
    of a new session.
    """
    namespace, session_id, parent = request.namespace, request.session_id, request.parent
    if (
        parent is not None
        and registry.exists(connection, namespace, parent)
        and not registry.exists(connection, namespace, session_id)
    ):
        registration = Registration(namespace, session_id, STORE_CHANNEL, session_id, parent=parent)
        registry.register(connection, registration, exist_ok=True)
    before = dialect_of(connection).lock_version(connection, namespace, session_id)
    saved = saving.save(connection, namespace, session_id, request.messages, times=request.times)
    return saved.version != before
