"""Leases and backoffs whose time is over: the transitions ``reap`` and ``wake``."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, exists, select, update

from sessionsdb.engine import functions
from sessionsdb.engine.clock import now
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import Due
from sessionsdb.operations.keys import within
from sessionsdb.operations.running_messages import NO_TURN, read_running
from sessionsdb.operations.state_changes import THIS_MAILBOX, StateChanges, key_parameters
from sessionsdb.schema import mailboxes, schedules

# The backoff is over.
_END_BACKOFF = (
    update(mailboxes)
    .where(*THIS_MAILBOX, mailboxes.c.wake_at.is_not(None))
    .values(wake_at=None, ready_at=mailboxes.c.wake_at)
)


class Reaped(NamedTuple):
    """The numbers of leases and messages that ``reap`` ended."""

    leases: int
    dead: int
    """The messages that are dead because it was their last attempt."""


def reap(
    connection: Connection,
    *,
    namespaces: Collection[str] | None,
    max_attempts: int,
    limit: int = 100,
) -> Reaped:
    """End at most ``limit`` leases that have expired.

    The worker died, froze or lost its database: the attempt counts. A message that has used up
    ``max_attempts`` is dead. Otherwise a message that kills its worker would do so for ever.
    """
    expired = (
        select(mailboxes.c.namespace, mailboxes.c.session_id, mailboxes.c.owner)
        .where(
            mailboxes.c.owner.is_not(None),
            mailboxes.c.lease_until < now(connection),
            within(mailboxes.c.namespace, namespaces),
        )
        .order_by(mailboxes.c.namespace, mailboxes.c.session_id)
        .limit(limit)
        .with_for_update(key_share=True, skip_locked=True)
    )
    owners = {(ns, id): owner for ns, id, owner in connection.execute(expired)}
    changes = StateChanges(connection)
    running = read_running(connection, list(owners))
    dead = 0
    for key, owner in owners.items():
        turn = running.get(key, NO_TURN)
        exhausted = [one for one in turn.begun if one.attempts >= max_attempts]
        retried = [one for one in turn.begun if one.attempts < max_attempts]
        error = f"LeaseExpired: worker {owner} did not finish"
        changes.return_to_pending(key, retried, error=error)
        final_error = f"{error}; given up after {max_attempts} attempts"
        changes.mark_dead(key, exhausted, final_error)
        changes.return_to_pending(key, turn.joined)
        changes.end_lease(key, dead=len(exhausted))
        dead += len(exhausted)
    changes.apply()
    return Reaped(len(owners), dead)


def wake(connection: Connection, *, namespaces: Collection[str] | None, limit: int = 1_000) -> int:
    """Make at most ``limit`` mailboxes ready whose backoff is over, and return how many."""
    due = (
        select(mailboxes.c.namespace, mailboxes.c.session_id)
        .where(
            mailboxes.c.wake_at.is_not(None),
            mailboxes.c.wake_at <= now(connection),
            within(mailboxes.c.namespace, namespaces),
        )
        .order_by(mailboxes.c.wake_at)
        .limit(limit)
        .with_for_update(key_share=True, skip_locked=True)
    )
    keys = [key_parameters((row.namespace, row.session_id)) for row in connection.execute(due)]
    if keys:
        connection.execute(_END_BACKOFF, keys)
    return len(keys)


def next_due(connection: Connection, *, namespaces: Collection[str] | None) -> Due:
    """Return when a worker finds something to do: the one cheap query of an idle poll.

    With schedules and a list of namespaces there is a second one, for the first schedule of each.
    """
    present = now(connection).label("present")
    waking = select(functions.minimum(mailboxes.c.wake_at)).where(
        mailboxes.c.wake_at.is_not(None), within(mailboxes.c.namespace, namespaces)
    )
    expiring = select(functions.minimum(mailboxes.c.lease_until)).where(
        mailboxes.c.owner.is_not(None), within(mailboxes.c.namespace, namespaces)
    )
    ready = exists().where(
        mailboxes.c.ready_at.is_not(None), within(mailboxes.c.namespace, namespaces)
    )
    is_list = namespaces is not None and len(namespaces) > 1
    # Of a list this asks about all namespaces: the databases would read all schedules of the list
    # to find the first one.
    scheduled = select(functions.minimum(schedules.c.try_at)).where(
        within(schedules.c.namespace, None if is_list else namespaces)
    )
    refused = exists().where(
        schedules.c.refused_at.is_not(None),
        within(schedules.c.namespace, None if is_list else namespaces),
    )
    row = connection.execute(
        select(
            ready.label("ready"),
            waking.scalar_subquery().label("waking"),
            expiring.scalar_subquery().label("expiring"),
            scheduled.scalar_subquery().label("scheduled"),
            refused.label("refused"),
            present,
        )
    ).one()
    scheduled_at, is_refused = row.scheduled, bool(row.refused)
    if is_list and scheduled_at is not None:
        scheduled_at, is_refused = _first_schedule(connection, namespaces or (), is_refused)

    def seconds_until(moment: datetime | None) -> float | None:
        return None if moment is None else max(0.0, (moment - row.present).total_seconds())

    moments = [moment for moment in (row.waking, row.expiring) if moment is not None]
    return Due(
        bool(row.ready),
        seconds_until(min(moments, default=None)),
        seconds_until(scheduled_at),
        is_refused,
    )


def _first_schedule(
    connection: Connection, namespaces: Collection[str], is_refused: bool
) -> tuple[datetime | None, bool]:
    """Return the moment of the first schedule of many namespaces, and whether one was refused.

    ``is_refused``: whether one of the database was.
    """
    firsts = dialect_of(connection).first_schedules(connection, namespaces)
    if is_refused:
        found = select(schedules.c.namespace).where(schedules.c.refused_at.is_not(None)).distinct()
        is_refused = not set(namespaces).isdisjoint(connection.execute(found).scalars())
    return min((first for _, first in firsts), default=None), is_refused
