"""Repair of a session whose counters differ from its rows: see ``consistency.py``.

The counters and states are set to the figures of the rows. No finished message is changed, and no
unfinished message is dropped.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from sessionsdb.engine import functions
from sessionsdb.engine.clock import now, read_now
from sessionsdb.operations.consistency import (
    Counters,
    Inconsistency,
    find_inconsistencies,
    question_is_sound,
    queue_is_sound,
    read_counters,
)
from sessionsdb.operations.inbox_types import UNFINISHED
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.operations.state_changes import point_to_answers
from sessionsdb.schema import first_epoch, inbox, mailboxes, messages, questions, sessions


def repair(
    connection: Connection, key: SessionKey
) -> tuple[list[Inconsistency], list[Inconsistency]]:
    """Correct the counters of a session, and return the inconsistencies before and after.

    The session is locked and read again first. A session that is deleted or consistent by now is
    not changed.
    """
    lock_mailboxes(connection, [key])
    lock_sessions(connection, [key])
    counters = _read_one(connection, key)
    before = [] if counters is None else find_inconsistencies(counters)
    if counters is None or not any(one.repairable for one in before):
        return before, before
    _repair_transcript(connection, counters)
    if not counters.has_mailbox:
        _create_mailbox(connection, counters)
        counters = _read_one(connection, key) or counters
    if find_inconsistencies(counters):
        _repair_mailbox(connection, counters)
    repaired = _read_one(connection, key)
    return before, [] if repaired is None else find_inconsistencies(repaired)


def _read_one(connection: Connection, key: SessionKey) -> Counters | None:
    page, _ = read_counters(connection, key, 1)
    return page[0] if page and page[0].key == key else None


def _repair_transcript(connection: Connection, c: Counters) -> None:
    connection.execute(
        update(sessions)
        .where(sessions.c.namespace == c.namespace, sessions.c.id == c.session_id)
        .values(message_count=c.messages, last_seq=max(c.last_seq, c.max_seq))
    )


def _create_mailbox(connection: Connection, c: Counters) -> None:
    """Behind every position that an inbox row or the transcript has: none is assigned again."""
    tail = max(
        connection.execute(
            select(func.coalesce(functions.maximum(table.c.position), 0)).where(
                table.c.namespace == c.namespace, table.c.session_id == c.session_id
            )
        ).scalar_one()
        for table in (inbox, messages)
    )
    connection.execute(
        insert(mailboxes).values(
            namespace=c.namespace,
            session_id=c.session_id,
            head=tail + 1,
            tail=tail,
            epoch=first_epoch(),
            closed=c.ended,
        )
    )


def _repair_mailbox(connection: Connection, c: Counters) -> None:
    of_session = and_(inbox.c.namespace == c.namespace, inbox.c.session_id == c.session_id)
    unfinished = inbox.c.status.in_(UNFINISHED)
    pending = c.unfinished
    values: dict[str, Any] = {"tail": max(c.tail, c.last_position), "head": c.head}
    if c.closed and c.ended and c.unfinished:  # as session_end.py does
        connection.execute(
            update(inbox)
            .where(of_session, unfinished)
            .values(
                status="cancelled",
                stopped_by="end",
                finished_at=now(connection),
                ahead=False,
                joined=False,
            )
        )
        pending = 0
    if not queue_is_sound(c) or pending != c.unfinished:
        # Where head and tail are wrong, all unfinished messages are moved before head, in their
        # order, and are marked as ahead. A claim finds those by an index of their own.
        values["head"] = values["tail"] + 1
        connection.execute(
            update(inbox)
            .where(of_session, or_(unfinished, inbox.c.ahead))
            .values(ahead=inbox.c.status.in_(UNFINISHED))
        )
    if c.running and not c.leased and pending:
        connection.execute(
            update(inbox).where(of_session, unfinished).values(status="pending", joined=False)
        )
    values |= {"pending": pending, "taken": c.running if c.leased else 0}
    values["last_taken"] = values["tail"] if c.leased else 0
    if not question_is_sound(c):
        values |= _release_question(connection, c)
        c = c._replace(held=0, waking=c.waking and not c.held)
    if c.closed != c.ended and not c.unfinished:
        values |= _close(connection, c)
    if c.closed or values.get("closed"):
        if pending == 0:
            values |= {"ready_at": None, "wake_at": None, "owner": None, "lease_until": None}
            values |= {"taken": 0, "last_taken": 0, "epoch": mailboxes.c.epoch + 1}
    elif pending == 0 and not c.held:
        values |= {"ready_at": None, "wake_at": None}
    elif pending and not (c.ready or c.waking or c.leased):
        values["ready_at"] = now(connection)
    connection.execute(
        update(mailboxes)
        .where(mailboxes.c.namespace == c.namespace, mailboxes.c.session_id == c.session_id)
        .values(**values)
    )
    point_to_answers(connection, [c.key])


def _release_question(connection: Connection, c: Counters) -> dict[str, Any]:
    """Withdraw all open questions.

    Otherwise the session would wait for an answer that can't come.
    """
    connection.execute(
        update(questions)
        .where(
            questions.c.namespace == c.namespace,
            questions.c.session_id == c.session_id,
            questions.c.closed_at.is_(None),
        )
        .values(status="withdrawn", closed_at=read_now(connection))
    )
    values: dict[str, Any] = {"question": None, "accepts_message": False}
    if c.held:
        values["wake_at"] = None
    return values


def _close(connection: Connection, c: Counters) -> dict[str, Any]:
    """Complete an end that only one of the two rows records. The inbox is empty."""
    if not c.ended:
        connection.execute(
            update(sessions)
            .where(sessions.c.namespace == c.namespace, sessions.c.id == c.session_id)
            .values(ended_at=now(connection))
        )
    return {"closed": True}
