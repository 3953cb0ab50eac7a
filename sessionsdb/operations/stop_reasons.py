"""The reasons why leases of a worker were taken away, read from the rows that they left."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from sessionsdb.engine.clock import as_utc
from sessionsdb.operations import mailbox
from sessionsdb.operations.inbox_types import Lease
from sessionsdb.operations.keys import Fence
from sessionsdb.operations.row_conditions import at_positions, is_mailbox
from sessionsdb.schema import inbox, mailboxes, sessions
from sessionsdb.types import StoppedBy


def find_stopped(
    connection: Connection, worker: str, leases: Sequence[Lease]
) -> dict[Fence, StoppedBy]:
    """Return the leases that this worker no longer holds, by key and epoch, with the reasons."""
    held = mailbox.held_fences(connection, worker)
    return {lease.fence: _reason(connection, lease) for lease in leases if lease.fence not in held}


def _reason(connection: Connection, lease: Lease) -> StoppedBy:
    """The messages that were cancelled say why. Their epoch is the one of the lease.

    A session that was deleted has no such row, also if it was created again.
    """
    stopped_by: StoppedBy | None = connection.execute(
        select(inbox.c.stopped_by)
        .where(
            inbox.c.namespace == lease.namespace,
            inbox.c.session_id == lease.session_id,
            at_positions(connection, lease.positions),
            inbox.c.epoch == lease.epoch,
            inbox.c.stopped_by.is_not(None),
        )
        .limit(1)
    ).scalar()
    if stopped_by is not None:
        return stopped_by
    session = connection.execute(
        select(sessions.c.created_at, mailboxes.c.closed)
        .join(
            mailboxes,
            (mailboxes.c.namespace == sessions.c.namespace)
            & (mailboxes.c.session_id == sessions.c.id),
        )
        .where(*is_mailbox(lease.key))
    ).one_or_none()
    is_gone = session is None or as_utc(session.created_at) != lease.session.created_at
    return "end" if session is None or is_gone or session.closed else "lease"
