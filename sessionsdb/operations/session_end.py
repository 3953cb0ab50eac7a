"""The end of sessions and its undoing: the transitions ``end`` and ``reopen`` of ``mailbox.py``."""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_stored, present_sql, present_values, read_now
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import UnknownSession
from sessionsdb.operations import child_reports, questions, registry, schedules
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import UNFINISHED_SQL
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.operations.state_changes import NO_LEASE_SQL
from sessionsdb.operations.tree import check_child_limit, lock_subtree
from sessionsdb.types import Limits


class Ended(NamedTuple):
    """The result of ``end``."""

    sessions: int
    """How many sessions were ended. Those that had ended before are not counted."""
    reported: bool
    """Whether the parent of the session was told."""


def end(
    connection: Connection,
    namespace: str,
    session_id: str,
    *,
    subtree: bool = False,
    reason: str | None = None,
) -> Ended:
    """End a session, with its whole subtree if ``subtree``.

    Nothing enters or leaves their inboxes any more, unfinished messages are cancelled, and a
    running turn can't commit. Their schedules are deleted. The parent of a child that reports is
    told, unless the parent has ended. Raises ``UnknownSession``.
    """
    top = (namespace, session_id)
    # Of a subtree only the topmost session has a parent that does not end with it.
    parents = child_reports.open_among(connection, [top])
    if subtree:
        ids = lock_subtree(connection, namespace, session_id, parents.values())
    else:
        ids = [session_id]
        lock_mailboxes(connection, [top, *parents.values()])
        lock_sessions(connection, [top, *parents.values()])
    if not ids or not registry.exists(connection, namespace, session_id):
        raise UnknownSession(session_id)
    close = partial(_close, connection, reason=reason)
    ended = sum(close((namespace, id), is_below=id != session_id) for id in ids)
    schedules.remove_of_sessions(connection, namespace, ids)
    reported = child_reports.send(connection, [child_reports.of_end(top, reason)])
    return Ended(ended, reported)


_HEAD = Statement("""
SELECT head FROM mailboxes
WHERE namespace = :namespace AND session_id = :session_id AND closed = FALSE
""")

_CLOSE = Statement(f"""
UPDATE mailboxes
SET {NO_LEASE_SQL}, {questions.NOT_HELD_SQL}, answer = NULL, ready_at = NULL, wake_at = NULL,
    closed = TRUE, epoch = epoch + 1, pending = 0, head = tail + 1
WHERE namespace = :namespace AND session_id = :session_id
""")


_UNFINISHED = f"""
    SELECT position FROM inbox
    WHERE namespace = :namespace AND session_id = :session_id AND status IN {UNFINISHED_SQL}
      AND position >= :head
    UNION ALL
    SELECT position FROM inbox
    WHERE namespace = :namespace AND session_id = :session_id AND status IN {UNFINISHED_SQL}
      AND ahead
"""


@cache
def _cancel_unfinished(in_positions: str, present: str) -> Statement:
    return Statement(f"""
UPDATE inbox
SET status = 'cancelled', stopped_by = 'end', finished_at = {present}, ahead = FALSE, joined = FALSE
WHERE namespace = :namespace AND session_id = :session_id AND position {in_positions}
""")


@cache
def _mark_ended(present: str, *, is_below: bool) -> Statement:
    # Of a session that ends with one above it, the report is dropped.
    report = ", report = CASE WHEN report = 'each' THEN 'dropped' ELSE report END"
    return Statement(f"""
UPDATE sessions
SET ended_at = {present}, end_reason = :reason, withdrawn = NULL{report if is_below else ""}
WHERE namespace = :namespace AND id = :session_id
""")


def _close(connection: Connection, key: SessionKey, *, reason: str | None, is_below: bool) -> bool:
    """End one session, and return false if it had ended before.

    A session ``is_below`` another one that ends with it.
    """
    ids = {"namespace": key[0], "session_id": key[1]}
    head = _HEAD.row(connection, ids)
    if head is None:
        return False
    _CLOSE.rows(connection, ids)
    present = present_sql(connection)
    values = {**ids, **present_values(connection)}
    _cancel_unfinished(dialect_of(connection).in_few(_UNFINISHED), present).rows(
        connection, {**values, "head": head[0]}
    )
    _mark_ended(present, is_below=is_below).rows(connection, {**values, "reason": reason})
    questions.close_at_end(connection, key, read_now(connection))
    return True


_PARENT_AND_END = Statement("""
SELECT parent_id, ended_at FROM sessions WHERE namespace = :namespace AND id = :session_id
""")

_MARK_LIVE = Statement("""
UPDATE sessions
SET ended_at = NULL, end_reason = NULL,
    last_active = CASE WHEN last_active > :now THEN last_active ELSE :now END
WHERE namespace = :namespace AND id = :session_id
""")

_OPEN = Statement("""
UPDATE mailboxes SET closed = FALSE WHERE namespace = :namespace AND session_id = :session_id
""")


def reopen(connection: Connection, namespace: str, session_id: str, limits: Limits) -> bool:
    """Let an ended session take messages again, and return false if it is live already.

    Cancelled messages stay cancelled, and its subtree stays as it is. The limit of living children
    holds for its parent. Raises ``UnknownSession`` and ``SpawnDenied``.
    """
    ids = {"namespace": namespace, "session_id": session_id}
    before = _PARENT_AND_END.row(connection, ids)
    parent = None if before is None else before[0]
    keys = [(namespace, session_id)]
    lock_mailboxes(connection, keys)
    # The parent is locked as by a spawn, so that two reopened children can't both be the last.
    lock_sessions(connection, keys if parent is None else [*keys, (namespace, parent)])
    row = _PARENT_AND_END.row(connection, ids)
    if row is None:
        raise UnknownSession(session_id)
    parent, ended_at = row
    if ended_at is None:
        return False
    if parent is not None:
        check_child_limit(connection, namespace, parent, limits)
    _MARK_LIVE.rows(connection, {**ids, "now": as_stored(connection, read_now(connection))})
    _OPEN.rows(connection, ids)
    return True
