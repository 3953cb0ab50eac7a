"""The ends of leases by the worker: the transitions ``fail``, ``release`` and ``rerun``.

See ``mailbox.py``. The messages of a lease are read from the database. So a message that joined the
turn goes back as well if the worker does not know of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta

from sqlalchemy import Connection, select

from sessionsdb.engine import clock
from sessionsdb.operations import child_reports
from sessionsdb.operations.inbox_types import NO_USAGE, Fail, Lease, Usage
from sessionsdb.operations.keys import Fence, SessionKey, chunks
from sessionsdb.operations.mailbox import held_fences
from sessionsdb.operations.row_conditions import MAX_KEYS, among
from sessionsdb.operations.row_locks import lock_mailboxes, locked_elsewhere
from sessionsdb.operations.running_messages import NO_TURN, read_running
from sessionsdb.operations.state_changes import StateChanges
from sessionsdb.schema import mailboxes

RERUNS = 3
"""How often in a row a turn over a message is run again because its transcript was rewritten. The
next one is a failed attempt."""


def fail(connection: Connection, worker: str, failures: Sequence[Fail]) -> list[bool]:
    """Record each failed attempt and end its lease. Return false where the lease was lost.

    The mailbox waits for the next attempt. Without one the messages that the turn began with are
    dead, and the next message is ready. Messages that joined the turn are pending again: neither
    the attempt nor the death is theirs. The death of a child's prompt is told to the parent.
    """
    leases = [failure.lease for failure in failures]
    parents = child_reports.open_among(
        connection, [one.lease.key for one in failures if one.reports]
    )
    if parents:
        lock_mailboxes(connection, [*(lease.key for lease in leases), *parents.values()])
    fences = _still_held(connection, worker, leases)
    running = read_running(connection, [key for key, _epoch in fences])
    present = clock.read_now(connection)
    changes = StateChanges(connection)
    for failure in failures:
        key = failure.lease.key
        if failure.lease.fence not in fences:
            continue
        turn = running.get(key, NO_TURN)
        changes.return_to_pending(key, turn.joined)
        changes.add_usage(key, turn.begun, failure.usage)
        if failure.retry_in is None:
            changes.mark_dead(key, turn.begun, failure.error)
            changes.end_lease(key, dead=len(turn.begun))
        else:
            changes.return_to_pending(key, turn.begun, error=failure.error)
            changes.wait(key, until=present + timedelta(seconds=failure.retry_in))
    changes.apply()
    deaths = [
        child_reports.of_death(failure.lease.key, failure.error)
        for failure in failures
        if failure.reports and failure.lease.fence in fences
    ]
    child_reports.lock_and_send(connection, deaths, parents)
    return [failure.lease.fence in fences for failure in failures]


def release(connection: Connection, worker: str, leases: Sequence[Lease]) -> None:
    """End leases without a result: the attempt is not counted, and the messages are ready."""
    fences = _still_held(connection, worker, leases)
    _end_uncounted(connection, [lease.key for lease in leases if lease.fence in fences])


def release_free(connection: Connection, worker: str, leases: Sequence[Lease]) -> list[Lease]:
    """Release those leases whose mailboxes no other transaction has locked. Return the others."""
    locked = locked_elsewhere(connection, [lease.key for lease in leases])
    release(connection, worker, [lease for lease in leases if lease.key not in locked])
    return [lease for lease in leases if lease.key in locked]


def rerun(
    connection: Connection, worker: str, lease: Lease, usage: Usage = NO_USAGE
) -> bool | None:
    """End the lease of a turn whose transcript was rewritten, and return true.

    The attempt is not counted, and its messages are ready. False: the lease was lost. ``None``: the
    turn was run again ``RERUNS`` times in a row, nothing is changed, and the attempt has failed.
    """
    if lease.fence not in _still_held(connection, worker, [lease]):
        return False
    running = read_running(connection, [lease.key]).get(lease.key, NO_TURN)
    if any(one.reruns >= RERUNS for one in running.begun):
        return None
    _end_uncounted(connection, [lease.key], reruns=1)
    changes = StateChanges(connection)
    changes.add_usage(lease.key, running.begun, usage)
    changes.apply()
    return True


def release_unknown(connection: Connection, worker: str, known: Collection[Fence]) -> int:
    """End leases of this worker that it does not know, and return how many there were.

    The answer to their claim was lost with the connection. ``known``: the leases that it knows. It
    may know an older lease of the same session, whose commit had an answer that was lost too.
    """
    found = [key for key, epoch in held_fences(connection, worker) if (key, epoch) not in known]
    if not found:
        return 0
    # Before the lock a lease may have expired, and another worker may have been given the session.
    fences = _lock_held(connection, worker, found)
    unknown = [key for key, epoch in fences if (key, epoch) not in known]
    _end_uncounted(connection, unknown)
    return len(unknown)


def _still_held(connection: Connection, worker: str, leases: Sequence[Lease]) -> set[Fence]:
    """The fences of the leases that are still this worker's. Their mailboxes are locked.

    A lease that was lost may be in the list beside its successor: only the epochs differ.
    """
    return _lock_held(connection, worker, [lease.key for lease in leases])


def _lock_held(connection: Connection, worker: str, keys: Sequence[SessionKey]) -> set[Fence]:
    """Lock mailboxes, and return the fences of those that the worker holds."""
    lock_mailboxes(connection, keys)
    fences: set[Fence] = set()
    for some in chunks(keys, MAX_KEYS):
        owned = connection.execute(
            select(mailboxes.c.namespace, mailboxes.c.session_id, mailboxes.c.epoch).where(
                among(some), mailboxes.c.owner == worker
            )
        )
        fences |= {((row.namespace, row.session_id), row.epoch) for row in owned}
    return fences


def _end_uncounted(
    connection: Connection, keys: Collection[SessionKey], *, reruns: int = 0
) -> None:
    """End the leases of locked mailboxes. The attempt is not counted, and the messages are ready.

    ``reruns`` is added to the reruns of the messages that the turns began with.
    """
    running = read_running(connection, keys)
    changes = StateChanges(connection)
    for key in keys:
        turn = running.get(key, NO_TURN)
        changes.return_to_pending(key, turn.begun, uncounted=1, reruns=reruns)
        changes.return_to_pending(key, turn.joined)
        changes.end_lease(key)
    changes.apply()
