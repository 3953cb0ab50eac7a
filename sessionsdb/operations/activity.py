"""What goes on now: leases, what waits, and how much came and went lately.

The cost is that of what is busy: partial indices lead to the leases and to what waits, and the last
minute is found through the sessions that were active in it, at the ends of their inboxes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    and_,
    cast,
    column,
    func,
    or_,
    select,
    table,
    true,
)

from sessionsdb.operations.clock import later, now
from sessionsdb.schema import UTCDateTime, inbox, mailboxes, sessions

MOST_OF_ONE = 10_000
"""How far back into one inbox the last minute is looked for: what came and went beyond that is
not counted."""

_COUNTS = ("sessions", "pending", "running", "ready", "retrying", "leased", "overdue", "dead")
_REPORT = table(
    "report_inbox",
    column("namespace"),
    *(column(name, BigInteger) for name in _COUNTS),
    column("oldest_at", UTCDateTime),
)


class Waiting(NamedTuple):
    """The inboxes, summed up; see the view ``report_inbox`` for each figure."""

    sessions: int
    pending: int
    running: int
    ready: int
    retrying: int
    leased: int
    overdue: int
    dead: int
    oldest_at: datetime | None


class Held(NamedTuple):
    """One lease: a turn that runs."""

    worker: str
    namespace: str
    session_id: str
    lease_until: datetime
    claimed_at: datetime | None
    attempt: int
    messages: int


class Lately(NamedTuple):
    """What came and went in the last seconds."""

    sends: int
    turns: int
    dead: int


class Load(NamedTuple):
    """How much is unfinished, and how old the oldest readiness is; cheap enough for a gauge."""

    pending: int
    running: int
    leased: int
    ready_seconds: float


def present(connection: Connection) -> datetime:
    """The database's clock."""
    return connection.execute(select(now(connection))).scalar_one()


def waiting(connection: Connection, namespace: str | None) -> Waiting:
    """What waits in a namespace, or in all."""
    sums = (cast(func.coalesce(func.sum(_REPORT.c[name]), 0), BigInteger) for name in _COUNTS)
    row = connection.execute(
        select(*sums, func.min(_REPORT.c.oldest_at, type_=UTCDateTime)).where(
            _within(_REPORT.c.namespace, namespace)
        )
    ).one()
    return Waiting._make(row)


def leases(connection: Connection, namespace: str | None, most: int) -> list[Held]:
    """The leases, those that run longest first."""
    ours = and_(
        inbox.c.namespace == mailboxes.c.namespace,
        inbox.c.session_id == mailboxes.c.session_id,
        inbox.c.status == "running",
    )
    at_head = inbox.c.position.between(mailboxes.c.head, mailboxes.c.head + mailboxes.c.taken - 1)

    def of_turn(what: ColumnElement[Any]) -> ColumnElement[Any]:
        # Two searches by an index each: as one condition it would read the whole inbox.
        return func.coalesce(
            *(
                select(what).where(ours, which).correlate(mailboxes).scalar_subquery()
                for which in (at_head, inbox.c.requeued)
            ),
            type_=what.type,
        )

    claimed_at = of_turn(func.min(inbox.c.claimed_at)).label("claimed_at")
    rows = connection.execute(
        select(
            mailboxes.c.owner,
            mailboxes.c.namespace,
            mailboxes.c.session_id,
            mailboxes.c.lease_until,
            claimed_at,
            of_turn(func.max(inbox.c.attempts)).label("attempt"),
            mailboxes.c.taken,
        )
        .where(mailboxes.c.owner.is_not(None), _within(mailboxes.c.namespace, namespace))
        .order_by(claimed_at, mailboxes.c.namespace, mailboxes.c.session_id)
        .limit(most)
    )
    return [Held(*row[:5], row.attempt or 0, row.taken) for row in rows]


def workers(connection: Connection, namespace: str | None) -> dict[str, int]:
    """How many leases each worker holds."""
    rows = connection.execute(
        select(mailboxes.c.owner, func.count())
        .where(mailboxes.c.owner.is_not(None), _within(mailboxes.c.namespace, namespace))
        .group_by(mailboxes.c.owner)
        .order_by(mailboxes.c.owner)
    )
    return {row[0]: row[1] for row in rows}


def lately(connection: Connection, namespace: str | None, seconds: float) -> Lately:
    """What was sent, and what was finished, in the last ``seconds``."""
    since = select(later(connection, -seconds)).scalar_subquery()
    came = inbox.c.position.between(mailboxes.c.tail - MOST_OF_ONE, mailboxes.c.tail)
    went = inbox.c.position.between(mailboxes.c.head - MOST_OF_ONE, mailboxes.c.head - 1)
    active = (
        select(mailboxes.c.namespace, mailboxes.c.session_id, mailboxes.c.head, mailboxes.c.tail)
        .join_from(
            sessions,
            mailboxes,
            and_(
                mailboxes.c.namespace == sessions.c.namespace,
                mailboxes.c.session_id == sessions.c.id,
            ),
        )
        .where(_within(sessions.c.namespace, namespace), sessions.c.last_active >= since)
    )

    def of_active(which: ColumnElement[bool], *what: ColumnElement[Any]) -> Any:
        return active.join(
            inbox,
            and_(
                inbox.c.namespace == mailboxes.c.namespace,
                inbox.c.session_id == mailboxes.c.session_id,
                which,
            ),
        ).with_only_columns(*what)

    sends = connection.execute(
        of_active(came, func.count()).where(inbox.c.enqueued_at >= since)
    ).scalar_one()
    # The messages of one turn have written the same rows.
    done = (
        of_active(went, inbox.c.namespace, inbox.c.session_id, inbox.c.first_seq)
        .where(inbox.c.finished_at >= since, inbox.c.status == "done")
        .distinct()
        .subquery()
    )
    turns = connection.execute(select(func.count()).select_from(done)).scalar_one()
    dead = connection.execute(
        select(func.count()).where(
            inbox.c.dead_at >= since,
            _within(inbox.c.namespace, namespace),
        )
    ).scalar_one()
    return Lately(sends, turns, dead)


def load(connection: Connection, namespaces: list[str] | None) -> Load:
    """What the gauges tell; reads the mailboxes that are busy, and nothing else."""
    within = true() if namespaces is None else mailboxes.c.namespace.in_(namespaces)
    busy = or_(
        mailboxes.c.ready_at.is_not(None),
        mailboxes.c.wake_at.is_not(None),
        mailboxes.c.owner.is_not(None),
    )
    row = connection.execute(
        select(
            func.coalesce(func.sum(mailboxes.c.pending - mailboxes.c.taken), 0),
            func.coalesce(func.sum(mailboxes.c.taken), 0),
            func.count(mailboxes.c.owner),
            func.min(mailboxes.c.ready_at),
            now(connection),
        ).where(busy, within)
    ).one()
    pending, running, leased, ready_at, at = row
    waited = 0.0 if ready_at is None else max(0.0, (at - ready_at).total_seconds())
    return Load(int(pending), int(running), leased, waited)


def _within(namespaced: ColumnElement[Any], namespace: str | None) -> ColumnElement[bool]:
    return true() if namespace is None else namespaced == namespace
