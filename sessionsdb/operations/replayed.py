"""Whether a standby has replayed the writes that a reader must see.

The writes are named by values that callers have: the receipt of a message, its outcome, the version
of a transcript. Each statement reads the row that the write changed.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.operations import transcripts

_TAIL = Statement("""
SELECT tail FROM mailboxes WHERE namespace = :namespace AND session_id = :session_id
""")

_UNFINISHED = Statement("""
SELECT position FROM inbox
WHERE namespace = :namespace AND session_id = :session_id AND position = :position
  AND finished_at IS NULL
""")


class SentMessage(NamedTuple):
    """A message that was sent, and finished if ``finished`` is true."""

    session_id: str
    position: int
    finished: bool = False


class SavedVersion(NamedTuple):
    """A version of a transcript that was written."""

    session_id: str
    version: int


SeenWrite = SentMessage | SavedVersion
"""A write of which the caller has heard."""


def has_replayed(connection: Connection, namespace: str, writes: tuple[SeenWrite, ...]) -> bool:
    """Return whether this server has all of these writes of a namespace."""
    return all(_has(connection, namespace, write) for write in writes)


def _has(connection: Connection, namespace: str, write: SeenWrite) -> bool:
    if isinstance(write, SavedVersion):
        found = transcripts.version(connection, namespace, write.session_id)
        return found is not None and found >= write.version
    key = {"namespace": namespace, "session_id": write.session_id}
    row = _TAIL.row(connection, key)
    if row is None or row[0] < write.position:
        return False
    if not write.finished:
        return True
    # The retention deletes finished rows only, so a missing row was finished.
    return _UNFINISHED.row(connection, key | {"position": write.position}) is None
