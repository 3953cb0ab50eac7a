"""Who waits for whom: kept so that no circle of sessions waits for one another.

A session that waits for an answer answers nobody. If those it waits for, and those they wait for,
come round to it again, all of them stand still until they give up. So a wait is entered here
before it begins, unless it would close such a circle.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection, and_, delete, select, text

from sessionsdb.engine.clock import later, now
from sessionsdb.errors import CircularWait
from sessionsdb.operations.mailbox import UNFINISHED
from sessionsdb.operations.outcomes import MessageKey
from sessionsdb.schema import inbox, waits

# Two waits that close a circle together must not begin in the same moment. This lock is the only
# one their transactions take, and the first thing in them.
_LOCK = text("SELECT pg_advisory_xact_lock(730581, hashtext(:namespace))")

_EXPIRED = 100
"""How many entries of processes that died are cleared away at a time."""


class Wait(NamedTuple):
    """A session that waits for a message to be finished, for so many seconds."""

    waiter: str
    wait_id: str
    ticket: MessageKey
    seconds: float


def add_wait(connection: Connection, wait: Wait) -> None:
    """Write down that a session waits, or go on waiting. Raises ``CircularWait``."""
    namespace, target, position = wait.ticket
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK, {"namespace": namespace})
    circle = _find_path(connection, namespace, start=target, end=wait.waiter)
    if circle is not None:
        raise CircularWait([wait.waiter, *circle])
    _clear(connection, namespace)
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
    """The wait is over."""
    connection.execute(
        delete(waits).where(
            waits.c.namespace == namespace,
            waits.c.waiter_id == waiter,
            waits.c.wait_id == wait_id,
        )
    )


def _find_path(connection: Connection, namespace: str, *, start: str, end: str) -> list[str] | None:
    """The sessions from ``start`` to ``end``, each waiting for the next, if there is such a way."""
    came_from: dict[str, str | None] = {start: None}
    edge = [start]
    while edge and end not in came_from:
        steps = _awaited_sessions(connection, namespace, edge)
        edge = []
        for waiter, target in steps:
            if target not in came_from:
                came_from[target] = waiter
                edge.append(target)
    if end not in came_from:
        return None
    way = [end]
    while (previous := came_from[way[-1]]) is not None:
        way.append(previous)
    return way[::-1]


def _awaited_sessions(
    connection: Connection, namespace: str, waiters: Collection[str]
) -> list[tuple[str, str]]:
    """Whom each of these waits for. A wait whose message is finished is one that just ends."""
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


def _clear(connection: Connection, namespace: str) -> None:
    """Entries that ran out: their process died."""
    old = (
        select(waits.c.waiter_id, waits.c.wait_id)
        .where(
            waits.c.namespace == namespace,
            # As a subquery: a time that may change from row to row is not looked for in an index.
            waits.c.until < select(now(connection)).scalar_subquery(),
        )
        .order_by(waits.c.until)
        .limit(_EXPIRED)
    )
    for row in connection.execute(old).all():
        remove_wait(connection, namespace, row.waiter_id, row.wait_id)
