"""Leases and backoffs whose time is over: the transitions ``reap`` and ``wake``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, literal, select, update

from sessionsdb.engine import clock
from sessionsdb.engine.clock import now
from sessionsdb.engine.statement import Statement
from sessionsdb.operations import child_reports, questions
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import PROMPT_POSITION, Due
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.row_conditions import is_mailbox, within, within_sql, within_values
from sessionsdb.operations.row_locks import locked_elsewhere
from sessionsdb.operations.running_messages import NO_TURN, RunningTurn, read_running
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
    reporting: tuple[SessionKey, ...] = ()
    """Children whose prompt would die, and whose parents are to be told. Their leases are left to
    ``reap_reporting``, each in a transaction of its own."""


def reap(
    connection: Connection,
    *,
    namespaces: Collection[str] | None,
    max_attempts: int,
    limit: int = 100,
) -> Reaped:
    """End at most ``limit`` leases that have expired.

    The worker died, froze or lost its database: the attempt counts. A message that has used up
    ``max_attempts`` is dead. Otherwise a message that kills its worker would do so for ever. The
    leases of ``Reaped.reporting`` are left as they are.
    """
    expired = (
        select(mailboxes.c.namespace, mailboxes.c.session_id, mailboxes.c.owner)
        .where(
            mailboxes.c.owner.is_not(None),
            mailboxes.c.lease_until < now(connection),
            _within(namespaces),
        )
        # The order of ix_mailboxes_leased. In another one SQLite would read all mailboxes.
        .order_by(mailboxes.c.owner, mailboxes.c.namespace, mailboxes.c.session_id)
        .limit(limit)
        .with_for_update(key_share=True, skip_locked=True)
    )
    owners = {(ns, id): owner for ns, id, owner in connection.execute(expired)}
    running = read_running(connection, list(owners))
    dying = [key for key in owners if _prompt_dies(running.get(key, NO_TURN), max_attempts)]
    # Their parents must be locked before them or behind them, in key order. These locks are taken.
    reporting = child_reports.open_among(connection, dying)
    ended = {key: owner for key, owner in owners.items() if key not in reporting}
    dead = _end_leases(connection, ended, running, max_attempts)
    return Reaped(len(ended), dead, tuple(sorted(reporting)))


def reap_reporting(connection: Connection, key: SessionKey, *, max_attempts: int) -> Reaped:
    """End the lease of one child that has expired, and tell its parent if the prompt is dead.

    Nothing is changed if the lease was renewed, or ended by another worker. Nor if one of both
    mailboxes is locked: the worker would wait, and claim nothing meanwhile. The next look tries it
    again.
    """
    parents = child_reports.open_among(connection, [key])
    if locked_elsewhere(connection, [key, *parents.values()]):
        return Reaped(0, 0)
    owner = connection.execute(
        select(mailboxes.c.owner).where(
            *is_mailbox(key),
            mailboxes.c.owner.is_not(None),
            mailboxes.c.lease_until < now(connection),
        )
    ).scalar()
    if owner is None:
        return Reaped(0, 0)
    running = read_running(connection, [key])
    prompt_dies = _prompt_dies(running.get(key, NO_TURN), max_attempts)
    dead = _end_leases(connection, {key: owner}, running, max_attempts)
    if prompt_dies:
        error = _final_error(owner, max_attempts)
        child_reports.lock_and_send(connection, [child_reports.of_death(key, error)], parents)
    return Reaped(1, dead)


def _prompt_dies(turn: RunningTurn, max_attempts: int) -> bool:
    return any(
        one.position == PROMPT_POSITION and one.attempts >= max_attempts for one in turn.begun
    )


def _error(owner: str) -> str:
    return f"LeaseExpired: worker {owner} did not finish"


def _final_error(owner: str, max_attempts: int) -> str:
    attempts = "1 attempt" if max_attempts == 1 else f"{max_attempts} attempts"
    return f"{_error(owner)}; given up after {attempts}"


def _end_leases(
    connection: Connection,
    owners: Mapping[SessionKey, str],
    running: Mapping[SessionKey, RunningTurn],
    max_attempts: int,
) -> int:
    """End the leases of locked mailboxes, and return how many messages are dead."""
    changes = StateChanges(connection)
    dead = 0
    for key, owner in owners.items():
        turn = running.get(key, NO_TURN)
        exhausted = [one for one in turn.begun if one.attempts >= max_attempts]
        retried = [one for one in turn.begun if one.attempts < max_attempts]
        changes.return_to_pending(key, retried, error=_error(owner))
        changes.mark_dead(key, exhausted, _final_error(owner, max_attempts))
        changes.return_to_pending(key, turn.joined)
        changes.end_lease(key, dead=len(exhausted))
        dead += len(exhausted)
    changes.apply()
    return dead


def wake(connection: Connection, *, namespaces: Collection[str] | None, limit: int = 1_000) -> int:
    """Make at most ``limit`` mailboxes ready, and return how many.

    Their backoff is over, or their question has expired.
    """
    due = (
        select(mailboxes.c.namespace, mailboxes.c.session_id, mailboxes.c.question)
        .where(
            mailboxes.c.wake_at.is_not(None),
            mailboxes.c.wake_at <= now(connection),
            _within(namespaces),
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


def _within(namespaces: Collection[str] | None) -> ColumnElement[bool]:
    """Return the condition for mailboxes of these namespaces, one that no index answers.

    Without statistics SQLite would choose the primary key, and read all of their mailboxes.
    """
    return within(mailboxes.c.namespace.concat(""), namespaces)


def next_due(
    connection: Connection, *, namespaces: Collection[str] | None, until_idle: bool = False
) -> Due:
    """Return when a worker finds something to do: the one cheap query of an idle poll.

    With ``until_idle`` it also tells whether nothing but open questions and later schedules is left
    to wait for. With schedules and a list of namespaces there is one more query.
    """
    is_list = namespaces is not None and len(namespaces) > 1
    statement = _next_due(
        clock.present_sql(connection), None if namespaces is None else len(namespaces)
    )
    parameters = within_values(namespaces) | clock.present_values(connection)
    row = statement.row(connection, parameters)
    assert row is not None
    ready, *times = row
    present, waking, expiring, scheduled_at = map(clock.as_utc_or_none, times)
    assert present is not None
    if scheduled_at is not None and namespaces is not None and is_list:
        firsts = dialect_of(connection).first_schedules(connection, namespaces)
        scheduled_at = min((first for _, first in firsts), default=None)
    moments = [moment for moment in (waking, expiring) if moment is not None]
    soonest = min(moments, default=None)
    idle = soonest is None or (
        until_idle and expiring is None and not _has_backoff(connection, namespaces)
    )
    if until_idle and scheduled_at is not None:
        idle = idle and not _has_refused(connection, namespaces)
    return Due(
        bool(ready),
        _seconds_from(present, soonest),
        _seconds_from(present, scheduled_at),
        idle,
    )


# An idle worker runs it for each hint. Built by SQLAlchemy each time it took 2 ms of the process.
@lru_cache(maxsize=64)
def _next_due(present: str, namespaces: int | None) -> Statement:
    """Return the query of ``next_due`` for so many namespaces, ``None`` for all.

    It returns whether a session is ready, the present, and the first backoff, lease and schedule.
    """
    of_these = within_sql("m.namespace", namespaces)
    return Statement(f"""
SELECT EXISTS (SELECT 1 FROM mailboxes AS m WHERE m.ready_at IS NOT NULL {of_these}),
       {present},
       (SELECT pg_catalog.min(m.wake_at) FROM mailboxes AS m
        WHERE m.wake_at IS NOT NULL {of_these}),
       (SELECT pg_catalog.min(m.lease_until) FROM mailboxes AS m
        WHERE m.owner IS NOT NULL {of_these}),
       ({_FIRST_SCHEDULE_OF_ONE if namespaces == 1 else _FIRST_SCHEDULE})
""")


# Of a list of namespaces this asks about all: the databases would read all schedules of the list to
# find the first one.
_FIRST_SCHEDULE = "SELECT pg_catalog.min(c.try_at) FROM schedules AS c"

# This reads one entry of ``ix_schedules_due``. With an equal sign the planner would also consider
# ``ix_schedules_first``, and walk over the schedules of all other namespaces.
_FIRST_SCHEDULE_OF_ONE = """
SELECT f.try_at FROM (
    SELECT c.namespace, c.try_at FROM schedules AS c
    WHERE c.namespace >= :namespace0
    ORDER BY c.namespace, c.try_at LIMIT 1
) AS f
WHERE f.namespace = :namespace0
"""


def _seconds_from(present: datetime, moment: datetime | None) -> float | None:
    return None if moment is None else max(0.0, (moment - present).total_seconds())


def _has_backoff(connection: Connection, namespaces: Collection[str] | None) -> bool:
    """Return whether a message is tried again later. Held mailboxes before it are walked over."""
    backoff = select(literal(1)).where(
        mailboxes.c.wake_at.is_not(None),
        mailboxes.c.question.is_(None),
        within(mailboxes.c.namespace, namespaces),
    )
    return connection.execute(backoff.limit(1)).first() is not None


def _has_refused(connection: Connection, namespaces: Collection[str] | None) -> bool:
    """Return whether a scheduled message that is due waits for room in its inbox.

    The inbox of a held session gets no room until a person answers.
    """
    refused = (
        select(literal(1))
        .select_from(schedules)
        .join(
            mailboxes,
            and_(
                mailboxes.c.namespace == schedules.c.namespace,
                mailboxes.c.session_id == schedules.c.session_id,
            ),
        )
        .where(
            schedules.c.refused_at.is_not(None),
            mailboxes.c.question.is_(None),
            within(schedules.c.namespace, namespaces),
        )
    )
    return connection.execute(refused.limit(1)).first() is not None
