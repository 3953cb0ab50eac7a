"""Leases and backoffs whose time is over: the transitions ``reap`` and ``wake``."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection, exists, literal, select, update

from sessionsdb.engine import functions
from sessionsdb.engine.clock import now
from sessionsdb.operations import questions
from sessionsdb.operations.inbox_types import Due
from sessionsdb.operations.keys import within
from sessionsdb.operations.running_messages import NO_TURN, read_running
from sessionsdb.operations.state_changes import THIS_MAILBOX, StateChanges, key_parameters
from sessionsdb.schema import mailboxes

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
    """Make at most ``limit`` mailboxes ready, and return how many.

    Their backoff is over, or their question has expired.
    """
    due = (
        select(mailboxes.c.namespace, mailboxes.c.session_id, mailboxes.c.question)
        .where(
            mailboxes.c.wake_at.is_not(None),
            mailboxes.c.wake_at <= now(connection),
            within(mailboxes.c.namespace, namespaces),
        )
        .order_by(mailboxes.c.wake_at)
        .limit(limit)
        .with_for_update(key_share=True, skip_locked=True)
    )
    rows = connection.execute(due).all()
    keys = [key_parameters((row[0], row[1])) for row in rows if row.question is None]
    if keys:
        connection.execute(_END_BACKOFF, keys)
    for row in rows:
        if row.question is not None:
            questions.expire(connection, (row.namespace, row.session_id), row.question)
    return len(rows)


def next_due(
    connection: Connection, *, namespaces: Collection[str] | None, until_idle: bool = False
) -> Due:
    """Return when a worker finds something to do: the one cheap query of an idle poll.

    With ``until_idle`` it also tells whether nothing but open questions is left to wait for.
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
    row = connection.execute(
        select(
            ready.label("ready"),
            waking.scalar_subquery().label("waking"),
            expiring.scalar_subquery().label("expiring"),
            present,
        )
    ).one()
    moments = [moment for moment in (row.waking, row.expiring) if moment is not None]
    soonest = min(moments, default=None)
    return Due(
        bool(row.ready),
        None if soonest is None else max(0.0, (soonest - row.present).total_seconds()),
        soonest is None
        or (until_idle and row.expiring is None and not _has_backoff(connection, namespaces)),
    )


def _has_backoff(connection: Connection, namespaces: Collection[str] | None) -> bool:
    """Return whether a message is tried again later. Held mailboxes before it are walked over."""
    backoff = select(literal(1)).where(
        mailboxes.c.wake_at.is_not(None),
        mailboxes.c.question.is_(None),
        within(mailboxes.c.namespace, namespaces),
    )
    return connection.execute(backoff.limit(1)).first() is not None
