"""Requeue many dead messages: the transition ``requeue`` of ``mailbox.py``, for pages of them."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, and_, bindparam, case, literal, select, tuple_, update

from sessionsdb.engine.clock import now
from sessionsdb.operations import registry
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.mailbox import requeued_answer
from sessionsdb.operations.row_conditions import is_mailbox
from sessionsdb.operations.row_locks import lock_mailboxes
from sessionsdb.schema import UTCDateTime, inbox, mailboxes

PAGE = 500
"""How many dead messages are looked at in one transaction."""


class DeadFilter(NamedTuple):
    """Which dead messages to requeue."""

    namespace: str
    session_id: str | None = None
    since: datetime | None = None
    """Only messages that died at this time or later."""
    error: str | None = None
    """Only messages whose error has this text in it."""
    kind: str | None = None
    """Only messages whose error is of this kind: see ``kind_of_error``."""

    def matches(self, error: str | None) -> bool:
        """Return whether a message that died of this error is wanted, as far as its error says."""
        text = error or ""
        return (self.error is None or self.error in text) and (
            self.kind is None or self.kind == kind_of_error(text)
        )


def kind_of_error(error: str) -> str:
    """Return the name of an exception: the part of its text before the first colon."""
    return error.partition(":")[0].partition("\n")[0]


class DeadPosition(NamedTuple):
    """The place of a dead message in the order of deaths."""

    dead_at: datetime
    session_id: str
    position: int


class RequeuedPage(NamedTuple):
    """The result of one page."""

    requeued: int
    last: DeadPosition | None
    """Where the next page begins, ``None`` behind the last page."""


def latest_death(connection: Connection, namespace: str) -> datetime | None:
    """Return when the last message of the namespace died, ``None`` if none is dead."""
    return connection.execute(
        select(inbox.c.dead_at)
        .where(inbox.c.namespace == namespace, inbox.c.dead_at.is_not(None))
        .order_by(inbox.c.dead_at.desc())
        .limit(1)
    ).scalar()


def requeue_page(
    connection: Connection, wanted: DeadFilter, after: DeadPosition | None, until: datetime
) -> RequeuedPage:
    """Requeue the wanted messages of the next page, the earliest deaths first.

    Messages that died after ``until`` are not met: otherwise one that dies again would be requeued
    without end. Those of ended sessions stay dead. Run again, it finds what is left. Raises
    ``UnknownSession``.
    """
    if wanted.session_id is not None:
        registry.require(connection, wanted.namespace, wanted.session_id)
    page = connection.execute(_page(wanted, after, until)).all()
    if not page:
        return RequeuedPage(0, None)
    chosen = [(row.session_id, row.position) for row in page if wanted.matches(row.error)]
    count = _requeue(connection, wanted.namespace, chosen) if chosen else 0
    if len(page) < PAGE:
        return RequeuedPage(count, None)
    last = page[-1]
    return RequeuedPage(count, DeadPosition(last.dead_at, last.session_id, last.position))


def _page(wanted: DeadFilter, after: DeadPosition | None, until: datetime) -> Select[Any]:
    order = (inbox.c.dead_at, inbox.c.session_id, inbox.c.position)
    statement = (
        select(*order, inbox.c.error)
        .where(
            inbox.c.namespace == wanted.namespace,
            inbox.c.dead_at.is_not(None),
            inbox.c.dead_at <= until,
        )
        .order_by(*order)
        .limit(PAGE)
    )
    if wanted.session_id is not None:
        statement = statement.where(inbox.c.session_id == wanted.session_id)
    if wanted.since is not None:
        statement = statement.where(inbox.c.dead_at >= wanted.since)
    if after is not None:
        edge = (literal(after.dead_at, UTCDateTime), *map(literal, after[1:]))
        statement = statement.where(tuple_(*order) > tuple_(*edge))
    return statement


_REQUEUE = (
    update(inbox)
    .where(
        inbox.c.namespace == bindparam("of_namespace"),
        inbox.c.session_id == bindparam("of_session"),
        inbox.c.position == bindparam("at"),
        inbox.c.status == "dead",
    )
    .values(status="pending", attempts=0, ahead=True, reruns=0, dead_at=None, finished_at=None)
)


def _requeue(connection: Connection, namespace: str, chosen: list[tuple[str, int]]) -> int:
    keys: list[SessionKey] = sorted({(namespace, session_id) for session_id, _ in chosen})
    lock_mailboxes(connection, keys)
    # Read again now that their mailboxes are locked: another call may have requeued some.
    dead = connection.execute(
        select(inbox.c.session_id, inbox.c.position, inbox.c.answers)
        .join(
            mailboxes,
            and_(
                mailboxes.c.namespace == inbox.c.namespace,
                mailboxes.c.session_id == inbox.c.session_id,
            ),
        )
        .where(
            inbox.c.namespace == namespace,
            tuple_(inbox.c.session_id, inbox.c.position).in_(chosen),
            inbox.c.status == "dead",
            mailboxes.c.closed.is_(False),
        )
    ).all()
    if not dead:
        return 0
    connection.execute(
        _REQUEUE,
        [
            {"of_namespace": namespace, "of_session": row.session_id, "at": row.position}
            for row in dead
        ],
    )
    idle = and_(
        mailboxes.c.ready_at.is_(None), mailboxes.c.wake_at.is_(None), mailboxes.c.owner.is_(None)
    )
    connection.execute(
        update(mailboxes)
        .where(
            mailboxes.c.namespace == bindparam("of_namespace"),
            mailboxes.c.session_id == bindparam("of_session"),
        )
        .values(
            pending=mailboxes.c.pending + bindparam("more"),
            ready_at=case((idle, now(connection)), else_=mailboxes.c.ready_at),
        ),
        [
            {"of_namespace": namespace, "of_session": session_id, "more": count}
            for session_id, count in sorted(Counter(row.session_id for row in dead).items())
        ],
    )
    for row in dead:
        if row.answers is not None:
            connection.execute(
                update(mailboxes)
                .where(*is_mailbox((namespace, row.session_id)))
                .values(**requeued_answer(row.answers, row.position))
            )
    return len(dead)
