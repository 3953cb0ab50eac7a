"""The wait graph: the sessions that wait for other sessions now, kept to refuse circular waits.

A session that waits for a reply handles no messages. When sessions wait for each other in a circle,
none of them goes on before a wait times out. So a wait is recorded here before it begins, unless it
would close such a circle.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection, and_, delete, select

from sessionsdb.engine import functions
from sessionsdb.engine.clock import later, now
from sessionsdb.errors import CircularWait
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import UNFINISHED
from sessionsdb.operations.keys import MessageKey
from sessionsdb.schema import inbox, waits

EXPIRED_PER_WAIT = 100
"""At most how many expired waits are deleted when one is added."""


class Wait(NamedTuple):
    """A session that waits for a message to be finished, for at most ``seconds``."""

    waiter: str
    wait_id: str
    receipt: MessageKey
    seconds: float


def add_wait(connection: Connection, wait: Wait) -> None:
    """Record a wait, or renew it. Raises ``CircularWait``."""
    namespace, target, position = wait.receipt
    # Two waits that would close a circle together must not begin at the same moment. This is the
    # first lock of the transaction, and its only one.
    dialect_of(connection).lock_waits(connection, namespace)
    path = _find_path(connection, namespace, start=target, end=wait.waiter)
    if path is not None:
        raise CircularWait([wait.waiter, *path])
    _delete_some_expired(connection, namespace)
    remove_wait(connection, namespace, wait.waiter, wait.wait_id)
    connection.execute(
        waits.insert().values(
            namespace=namespace,
            waiter_id=wait.waiter,
            wait_id=wait.wait_id,
            target_id=target,
            target_position=position,
            until=later(connection, wait.seconds),
        )
    )


def remove_wait(connection: Connection, namespace: str, waiter: str, wait_id: str) -> None:
    """Delete a wait that is over."""
    connection.execute(
        delete(waits).where(
            waits.c.namespace == namespace,
            waits.c.waiter_id == waiter,
            waits.c.wait_id == wait_id,
        )
    )


def _find_path(connection: Connection, namespace: str, *, start: str, end: str) -> list[str] | None:
    """The sessions from ``start`` to ``end``, each waiting for the next, or ``None``."""
    came_from: dict[str, str | None] = {start: None}
    frontier = [start]
    while frontier and end not in came_from:
        edges = _awaited_sessions(connection, namespace, frontier)
        frontier = []
        for waiter, target in edges:
            if target not in came_from:
                came_from[target] = waiter
                frontier.append(target)
    if end not in came_from:
        return None
    path = [end]
    while (previous := came_from[path[-1]]) is not None:
        path.append(previous)
    return path[::-1]


def _awaited_sessions(
    connection: Connection, namespace: str, waiters: Collection[str]
) -> list[tuple[str, str]]:
    """Pairs of a waiter and the session it waits for. A wait for a finished message is ending."""
    rows = connection.execute(
        select(waits.c.waiter_id, waits.c.target_id)
        .join(
            inbox,
            and_(
                inbox.c.namespace == waits.c.namespace,
                inbox.c.session_id == waits.c.target_id,
                inbox.c.position == waits.c.target_position,
            ),
        )
        .where(
            waits.c.namespace == namespace,
            waits.c.waiter_id.in_(waiters),
            waits.c.until > now(connection),
            inbox.c.status.in_(UNFINISHED),
        )
    )
    return [(row.waiter_id, row.target_id) for row in rows]


def count_expired_waits(connection: Connection) -> int:
    """Count the waits that have expired: their processes died."""
    statement = select(functions.count()).where(waits.c.until < now(connection))
    return int(connection.execute(statement).scalar_one())


def delete_expired_waits(connection: Connection) -> int:
    """Delete the waits that have expired, and return how many."""
    return connection.execute(delete(waits).where(waits.c.until < now(connection))).rowcount


def _delete_some_expired(connection: Connection, namespace: str) -> None:
    expired = (
        select(waits.c.waiter_id, waits.c.wait_id)
        .where(
            waits.c.namespace == namespace,
            waits.c.until < now(connection),
        )
        .order_by(waits.c.until)
        .limit(EXPIRED_PER_WAIT)
    )
    for row in connection.execute(expired).all():
        remove_wait(connection, namespace, row.waiter_id, row.wait_id)
