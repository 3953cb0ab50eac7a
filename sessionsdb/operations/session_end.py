"""The end of sessions and its undoing: the transitions ``end`` and ``reopen`` of ``mailbox.py``."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, case, or_, select, update

from sessionsdb.engine.clock import now, read_now
from sessionsdb.errors import UnknownSession
from sessionsdb.operations import child_reports, questions, registry, schedules
from sessionsdb.operations.inbox_types import UNFINISHED
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.row_conditions import is_mailbox
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.operations.state_changes import NO_LEASE, later
from sessionsdb.operations.tree import check_child_limit, lock_subtree
from sessionsdb.schema import inbox, mailboxes, sessions
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
    close = partial(_close, connection, reason=reason, present=now(connection))
    ended = sum(close((namespace, id), is_below=id != session_id) for id in ids)
    schedules.remove_of_sessions(connection, namespace, ids)
    reported = child_reports.send(connection, [child_reports.of_end(top, reason)])
    return Ended(ended, reported)


def _close(
    connection: Connection,
    key: SessionKey,
    *,
    reason: str | None,
    present: ColumnElement[datetime],
    is_below: bool,
) -> bool:
    """End one session, and return false if it had ended before.

    A session ``is_below`` another one that ends with it: its report is dropped.
    """
    head = connection.execute(select(mailboxes.c.head).where(*is_mailbox(key))).scalar_one()
    closed = connection.execute(
        update(mailboxes)
        .where(*is_mailbox(key), mailboxes.c.closed.is_(False))
        .values(
            **NO_LEASE,
            **questions.NOT_HELD,
            answer=None,
            ready_at=None,
            wake_at=None,
            closed=True,
            epoch=mailboxes.c.epoch + 1,
            pending=0,
            head=mailboxes.c.tail + 1,
        )
        .returning(mailboxes.c.epoch)
    ).first()
    if closed is None:
        return False
    _cancel_unfinished(connection, key, head, present)
    changes: dict[str, Any] = {"ended_at": present, "end_reason": reason, "withdrawn": None}
    if is_below:
        changes["report"] = case((sessions.c.report == "each", "dropped"), else_=sessions.c.report)
    connection.execute(
        update(sessions)
        .where(sessions.c.namespace == key[0], sessions.c.id == key[1])
        .values(**changes)
    )
    questions.close_at_end(connection, key, read_now(connection))
    return True


def _cancel_unfinished(
    connection: Connection, key: SessionKey, head: int, present: ColumnElement[datetime]
) -> None:
    connection.execute(
        update(inbox)
        .where(
            inbox.c.namespace == key[0],
            inbox.c.session_id == key[1],
            inbox.c.status.in_(UNFINISHED),
            or_(inbox.c.position >= head, inbox.c.ahead),
        )
        .values(
            status="cancelled",
            stopped_by="end",
            finished_at=present,
            ahead=False,
            joined=False,
        )
    )


def reopen(connection: Connection, namespace: str, session_id: str, limits: Limits) -> bool:
    """Let an ended session take messages again, and return false if it is live already.

    Cancelled messages stay cancelled, and its subtree stays as it is. The limit of living children
    holds for its parent. Raises ``UnknownSession`` and ``SpawnDenied``.
    """
    parent = connection.execute(
        select(sessions.c.parent_id).where(
            sessions.c.namespace == namespace, sessions.c.id == session_id
        )
    ).scalar()
    keys = [(namespace, session_id)]
    lock_mailboxes(connection, keys)
    # The parent is locked as by a spawn, so that two reopened children can't both be the last.
    lock_sessions(connection, keys if parent is None else [*keys, (namespace, parent)])
    row = connection.execute(
        select(sessions.c.ended_at, sessions.c.parent_id).where(
            sessions.c.namespace == namespace, sessions.c.id == session_id
        )
    ).one_or_none()
    if row is None:
        raise UnknownSession(session_id)
    if row.ended_at is None:
        return False
    if row.parent_id is not None:
        check_child_limit(connection, namespace, row.parent_id, limits)
    connection.execute(
        update(sessions)
        .where(sessions.c.namespace == namespace, sessions.c.id == session_id)
        .values(
            ended_at=None,
            end_reason=None,
            last_active=later(sessions.c.last_active, read_now(connection)),
        )
    )
    connection.execute(update(mailboxes).where(*is_mailbox(keys[0])).values(closed=False))
    return True
