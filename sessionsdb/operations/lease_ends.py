"""The ends of leases and of backoffs: by the worker, or because their time is over.

These are the transitions ``fail``, ``release``, ``reap`` and ``wake`` of ``mailbox.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    select,
    tuple_,
    update,
)

from sessionsdb.engine import clock, functions
from sessionsdb.engine.clock import now
from sessionsdb.operations.inbox_types import Due, Fail, Lease
from sessionsdb.operations.keys import SessionKey, within
from sessionsdb.operations.row_locks import lock_mailboxes
from sessionsdb.schema import PlainText, UTCDateTime, inbox, mailboxes

# ---- fail, release -----------------------------------------------------------------------------


def fail(connection: Connection, worker: str, failures: Sequence[Fail]) -> list[bool]:
    """Record each failed attempt and end its lease. Return false where the lease was lost.

    The mailbox waits for the next attempt. Without one its messages are dead, and the next message
    is ready.
    """
    fences = _still_held(connection, worker, [failure.lease for failure in failures])
    present = clock.read_now(connection)
    changes = _StateChanges(connection)
    for failure in failures:
        lease = failure.lease
        if lease.fence not in fences:
            continue
        if failure.retry_in is None:
            changes.mark_dead(lease.key, lease.positions, failure.error)
            changes.end_lease(lease.key, dead=lease.positions)
        else:
            changes.return_to_pending(lease.key, lease.positions, error=failure.error)
            changes.wait(lease.key, until=present + timedelta(seconds=failure.retry_in))
    changes.apply()
    return [failure.lease.fence in fences for failure in failures]


def release(connection: Connection, worker: str, leases: Sequence[Lease]) -> None:
    """End leases without a result: the attempt is not counted, and the messages are ready."""
    fences = _still_held(connection, worker, leases)
    changes = _StateChanges(connection)
    for lease in leases:
        if lease.fence in fences:
            changes.return_to_pending(lease.key, lease.positions, uncounted=1)
            changes.end_lease(lease.key)
    changes.apply()


def release_unknown(connection: Connection, worker: str, known: Collection[SessionKey]) -> int:
    """End leases of this worker that it does not know, and return how many there were.

    The answer to their claim was lost with the connection. ``known``: the leases that it knows.
    """
    owned = connection.execute(
        select(mailboxes.c.namespace, mailboxes.c.session_id).where(mailboxes.c.owner == worker)
    )
    unknown = [key for row in owned if (key := (row.namespace, row.session_id)) not in known]
    lock_mailboxes(connection, unknown)
    changes = _StateChanges(connection)
    running = _running(connection, unknown)
    for key in unknown:
        changes.return_to_pending(key, running.get(key, ()), uncounted=1)
        changes.end_lease(key)
    changes.apply()
    return len(unknown)


# ---- reap, wake --------------------------------------------------------------------------------


class Reaped(NamedTuple):
    """What ``reap`` ended."""

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
    changes = _StateChanges(connection)
    running = _running(connection, list(owners))
    dead = 0
    for key, owner in owners.items():
        attempts = running.get(key, {})
        exhausted = [position for position, n in attempts.items() if n >= max_attempts]
        retried = [position for position in attempts if position not in exhausted]
        error = f"LeaseExpired: worker {owner} did not finish"
        changes.return_to_pending(key, retried, error=error)
        final_error = f"{error}; given up after {max_attempts} attempts"
        changes.mark_dead(key, exhausted, final_error)
        changes.end_lease(key, dead=exhausted)
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
    keys = [_key_parameters((row.namespace, row.session_id)) for row in connection.execute(due)]
    if keys:
        connection.execute(_END_BACKOFF, keys)
    return len(keys)


def next_due(connection: Connection, *, namespaces: Collection[str] | None) -> Due:
    """Return when a worker finds something to do: the one cheap query of an idle poll."""
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
    )


# ---- parts of the above ------------------------------------------------------------------------


def _still_held(
    connection: Connection, worker: str, leases: Sequence[Lease]
) -> set[tuple[SessionKey, int]]:
    """The fences of the leases that are still this worker's. Their mailboxes are locked.

    A lease that was lost may be in the list beside its successor: only the epochs differ.
    """
    keys = [lease.key for lease in leases]
    lock_mailboxes(connection, keys)
    owned = connection.execute(
        select(mailboxes.c.namespace, mailboxes.c.session_id, mailboxes.c.epoch).where(
            _among(keys), mailboxes.c.owner == worker
        )
    )
    return {((row.namespace, row.session_id), row.epoch) for row in owned}


def _running(
    connection: Connection, keys: Collection[SessionKey]
) -> dict[SessionKey, dict[int, int]]:
    """The attempts of the running messages of these mailboxes, by position.

    They were taken from the head, or were requeued and are before it.
    """
    last = mailboxes.c.head + mailboxes.c.taken - 1
    at_head = _select_running(keys, inbox.c.position.between(mailboxes.c.head, last))
    requeued = _select_running(keys, inbox.c.requeued)
    running: dict[SessionKey, dict[int, int]] = {}
    for row in connection.execute(at_head.union_all(requeued)):
        running.setdefault((row.namespace, row.session_id), {})[row.position] = row.attempts
    return running


def _select_running(keys: Collection[SessionKey], condition: ColumnElement[bool]) -> Select[Any]:
    # Each query has a list of keys of its own: SQLAlchemy 2.0 can't send one list twice.
    return (
        select(inbox.c.namespace, inbox.c.session_id, inbox.c.position, inbox.c.attempts)
        .join(
            mailboxes,
            and_(
                inbox.c.namespace == mailboxes.c.namespace,
                inbox.c.session_id == mailboxes.c.session_id,
            ),
        )
        .where(_among(keys), inbox.c.status == "running", condition)
    )


def _among(keys: Collection[SessionKey]) -> Any:
    return tuple_(mailboxes.c.namespace, mailboxes.c.session_id).in_(sorted(keys))


NO_LEASE: dict[str, Any] = {"owner": None, "lease_until": None, "taken": 0}
"""The columns of a mailbox without a lease."""

_THIS_MAILBOX = (
    mailboxes.c.namespace == bindparam("of_namespace"),
    mailboxes.c.session_id == bindparam("of_session"),
)
_THIS_MESSAGE = (
    inbox.c.namespace == bindparam("of_namespace"),
    inbox.c.session_id == bindparam("of_session"),
    inbox.c.position == bindparam("at"),
)
_PRESENT = bindparam("present", type_=UTCDateTime)
_DEAD = bindparam("dead", type_=BigInteger)
_PASSED = bindparam("passed", type_=BigInteger)

_RETURN_TO_PENDING = (
    update(inbox)
    .where(*_THIS_MESSAGE)
    .values(
        status="pending",
        attempts=inbox.c.attempts - bindparam("uncounted", type_=Integer),
        error=func.coalesce(bindparam("error", type_=PlainText), inbox.c.error),
    )
)

_MARK_DEAD = (
    update(inbox)
    .where(*_THIS_MESSAGE)
    .values(
        status="dead",
        error=bindparam("error", type_=PlainText),
        finished_at=_PRESENT,
        dead_at=_PRESENT,
        requeued=False,
    )
)

# The lease ends, and the next message is ready.
_END_LEASE = (
    update(mailboxes)
    .where(*_THIS_MAILBOX)
    .values(
        **NO_LEASE,
        pending=mailboxes.c.pending - _DEAD,
        head=case((mailboxes.c.head < _PASSED, _PASSED), else_=mailboxes.c.head),
        ready_at=case((mailboxes.c.pending > _DEAD, _PRESENT), else_=None),
    )
)

# The lease ends, and the head message is tried again later.
_END_LEASE_WITH_BACKOFF = (
    update(mailboxes)
    .where(*_THIS_MAILBOX)
    .values(**NO_LEASE, wake_at=bindparam("later", type_=UTCDateTime))
)

# The backoff is over.
_END_BACKOFF = (
    update(mailboxes)
    .where(*_THIS_MAILBOX, mailboxes.c.wake_at.is_not(None))
    .values(wake_at=None, ready_at=mailboxes.c.wake_at)
)


def _key_parameters(key: SessionKey) -> dict[str, Any]:
    return {"of_namespace": key[0], "of_session": key[1]}


class _StateChanges:
    """Changes to many mailboxes and their messages, made by one statement for each kind."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._returned: list[dict[str, Any]] = []
        self._dead: list[dict[str, Any]] = []
        self._ended_leases: list[dict[str, Any]] = []
        self._waiting: list[dict[str, Any]] = []

    def return_to_pending(
        self,
        key: SessionKey,
        positions: Iterable[int],
        *,
        error: str | None = None,
        uncounted: int = 0,
    ) -> None:
        self._returned += [
            {**_key_parameters(key), "at": position, "error": error, "uncounted": uncounted}
            for position in positions
        ]

    def mark_dead(self, key: SessionKey, positions: Iterable[int], error: str) -> None:
        self._dead += [
            {**_key_parameters(key), "at": position, "error": error} for position in positions
        ]

    def end_lease(self, key: SessionKey, *, dead: Collection[int] = ()) -> None:
        self._ended_leases.append(
            {**_key_parameters(key), "dead": len(dead), "passed": max(dead, default=0) + 1}
        )

    def wait(self, key: SessionKey, *, until: datetime) -> None:
        self._waiting.append({**_key_parameters(key), "later": until})

    def apply(self) -> None:
        present = {"present": clock.read_now(self._connection)}
        for statement, rows in (
            (_RETURN_TO_PENDING, self._returned),
            (_MARK_DEAD, [row | present for row in self._dead]),
            (_END_LEASE, [row | present for row in self._ended_leases]),
            (_END_LEASE_WITH_BACKOFF, self._waiting),
        ):
            if rows:
                self._connection.execute(statement, rows)
