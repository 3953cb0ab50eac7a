"""Schedules that are late, and the zones of all schedules: for doctor."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import Connection, exists, select

from sessionsdb.engine import clock, functions
from sessionsdb.schema import mailboxes, schedules


class LateSchedule(NamedTuple):
    """A schedule that is due and was not fired."""

    namespace: str
    session_id: str
    id: str
    tz: str
    seconds: float
    """How long it has been due."""
    is_refused: bool
    """Whether the inbox was full."""
    is_served: bool
    """Whether a worker holds a lease in its namespace now."""


class Zone(NamedTuple):
    """A time zone of cron schedules."""

    tz: str
    schedules: int
    example: str


def late(connection: Connection, *, seconds: float) -> list[LateSchedule]:
    """Return the schedules that have been due for more than ``seconds``, longest first."""
    present = clock.read_now(connection)
    leased = exists().where(
        mailboxes.c.namespace == schedules.c.namespace,
        mailboxes.c.owner.is_not(None),
        mailboxes.c.lease_until > present,
    )
    rows = connection.execute(
        select(
            schedules.c.namespace,
            schedules.c.session_id,
            schedules.c.id,
            schedules.c.tz,
            schedules.c.due_at,
            schedules.c.refused_at.is_not(None),
            leased,
        )
        .where(schedules.c.due_at < present - timedelta(seconds=seconds))
        .order_by(schedules.c.due_at, schedules.c.id)
    )
    return [
        LateSchedule(
            namespace,
            session_id,
            id,
            tz,
            (present - due_at).total_seconds(),
            bool(refused),
            bool(served),
        )
        for namespace, session_id, id, tz, due_at, refused, served in rows
    ]


def zones(connection: Connection) -> list[Zone]:
    """Return each time zone in which a cron expression is read, with one of its schedules."""
    rows = connection.execute(
        select(schedules.c.tz, functions.count(), functions.minimum(schedules.c.id))
        .where(schedules.c.cron.is_not(None))
        .group_by(schedules.c.tz)
        .order_by(schedules.c.tz)
    )
    return [Zone(*row) for row in rows]
