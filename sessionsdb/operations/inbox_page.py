"""The messages of an inbox that wait, run or died."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, select, union

from sessionsdb.operations import registry
from sessionsdb.operations.inbox_types import UNFINISHED
from sessionsdb.operations.outcomes import outcomes_with_messages
from sessionsdb.schema import inbox, mailboxes
from sessionsdb.types import Outcome


def read(
    connection: Connection, namespace: str, session_id: str, *, limit: int, after: int
) -> list[Outcome]:
    """Return at most ``limit`` messages behind the position ``after``, by position.

    Unfinished messages stand from head to tail or are ahead. So the finished messages before the
    head, which may be many, are not read. Raises ``UnknownSession``.
    """
    registry.require(connection, namespace, session_id)
    mailbox = select(mailboxes).where(
        mailboxes.c.namespace == namespace, mailboxes.c.session_id == session_id
    )
    head = mailbox.with_only_columns(mailboxes.c.head).scalar_subquery()
    tail = mailbox.with_only_columns(mailboxes.c.tail).scalar_subquery()
    unfinished = inbox.c.status.in_(UNFINISHED)

    def positions(*conditions: ColumnElement[bool]) -> Select[Any]:
        return select(inbox.c.position).where(
            inbox.c.namespace == namespace,
            inbox.c.session_id == session_id,
            inbox.c.position > after,
            *conditions,
        )

    waiting = (
        positions(inbox.c.position.between(head, tail), unfinished)
        .order_by(inbox.c.position)
        .limit(limit)
        .subquery()
    )
    found = union(
        select(waiting.c.position),
        positions(inbox.c.ahead, unfinished),
        # Without a limit, or PostgreSQL walks over the primary key until it has enough dead ones.
        positions(inbox.c.dead_at.is_not(None)),
    ).subquery()
    first = select(found.c.position).order_by(found.c.position).limit(limit)
    return outcomes_with_messages(
        connection,
        inbox.c.namespace == namespace,
        inbox.c.session_id == session_id,
        inbox.c.position.in_(first),
    )
