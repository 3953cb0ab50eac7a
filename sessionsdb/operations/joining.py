"""Messages that join a running turn: ``join`` and ``give back`` of ``mailbox.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, update

from sessionsdb.engine.clock import as_stored, read_now
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import LeaseLost
from sessionsdb.operations.delivery_rows import DeliveryRow, delivery_from
from sessionsdb.operations.inbox_types import Delivery, Lease
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.row_conditions import AHEAD, at_positions, is_mailbox
from sessionsdb.operations.row_locks import lock_mailboxes
from sessionsdb.schema import inbox, mailboxes

_DELIVERY = tuple(inbox.c[name] for name in DeliveryRow._fields)


def join(connection: Connection, worker: str, lease: Lease, limit: int | None) -> list[Delivery]:
    """Give at most ``limit`` waiting messages to a running turn, in the order of the claim.

    A message that was tried before and an answer are delivered alone, so they and the messages
    behind them stay pending. So does a damaged one. Raises ``LeaseLost``.
    """
    namespace, session_id = lease.key
    lock_mailboxes(connection, [lease.key])
    mailbox = connection.execute(
        select(mailboxes.c.head, mailboxes.c.tail, mailboxes.c.answer).where(
            *is_mailbox(lease.key),
            mailboxes.c.owner == worker,
            mailboxes.c.epoch == lease.epoch,
        )
    ).one_or_none()
    if mailbox is None:
        raise LeaseLost(session_id)
    of_session = (inbox.c.namespace == namespace, inbox.c.session_id == session_id)
    if mailbox.answer is not None and _has_waiting_answer(connection, lease.key):
        return []
    ahead = connection.execute(
        select(*_DELIVERY)
        .where(*of_session, AHEAD, inbox.c.status == "pending")
        .order_by(inbox.c.position)
        .limit(limit)
    ).all()
    in_order = connection.execute(
        select(*_DELIVERY)
        .where(
            *of_session,
            inbox.c.ahead.is_(False),
            inbox.c.status == "pending",
            inbox.c.position.between(mailbox.head, mailbox.tail),
        )
        .order_by(inbox.c.position)
        .limit(limit)
    ).all()
    taken: list[Delivery] = []
    for row in [*ahead, *in_order][:limit]:
        if row.attempts:  # such a message is delivered alone
            break
        joined = _joined(connection, row)
        if joined.fault is not None:  # it fails in a turn of its own
            break
        taken.append(joined)
    if not taken:
        return []
    connection.execute(
        update(inbox)
        .where(*of_session, at_positions(connection, [one.position for one in taken]))
        .values(
            status="running",
            joined=True,
            claimed_at=read_now(connection),
            worker=worker,
            epoch=lease.epoch,
        )
    )
    last = max((one.position for one in taken if not one.ahead), default=0)
    connection.execute(
        update(mailboxes)
        .where(*is_mailbox(lease.key))
        .values(
            taken=mailboxes.c.taken + len(taken),
            **({"last_taken": last} if last else {}),
        )
    )
    return taken


_WAITING_ANSWER = Statement("""
SELECT i.position FROM inbox AS i
WHERE i.namespace = :namespace AND i.session_id = :session_id AND i.ahead
  AND i.answers IS NOT NULL AND i.status = 'pending'
LIMIT 1
""")


def _has_waiting_answer(connection: Connection, key: SessionKey) -> bool:
    """Return whether an answer waits that was requeued. It comes before all other messages."""
    ids = {"namespace": key[0], "session_id": key[1]}
    return _WAITING_ANSWER.row(connection, ids) is not None


def give_back(connection: Connection, worker: str, lease: Lease, positions: Sequence[int]) -> None:
    """Make messages that joined a turn pending again, because the handler did not get them.

    They are none of the lease's deliveries. Raises ``LeaseLost``.
    """
    lock_mailboxes(connection, [lease.key])
    held = connection.execute(
        update(mailboxes)
        .where(
            *is_mailbox(lease.key), mailboxes.c.owner == worker, mailboxes.c.epoch == lease.epoch
        )
        .values(taken=mailboxes.c.taken - len(positions), last_taken=lease.last_position)
        .returning(mailboxes.c.epoch)
    ).first()
    if held is None:
        raise LeaseLost(lease.session_id)
    connection.execute(
        update(inbox)
        .where(
            inbox.c.namespace == lease.namespace,
            inbox.c.session_id == lease.session_id,
            at_positions(connection, positions),
        )
        .values(status="pending", joined=False)
    )


def find_joined(connection: Connection, worker: str, lease: Lease) -> list[Delivery]:
    """Return all messages that have joined a turn so far, in the order of the claim.

    So a worker finds messages of a join whose answer was lost. Raises ``LeaseLost``.
    """
    mailbox = connection.execute(
        select(mailboxes.c.epoch).where(
            *is_mailbox(lease.key), mailboxes.c.owner == worker, mailboxes.c.epoch == lease.epoch
        )
    ).one_or_none()
    if mailbox is None:
        raise LeaseLost(lease.session_id)
    rows = connection.execute(
        select(*_DELIVERY)
        .where(
            inbox.c.namespace == lease.namespace,
            inbox.c.session_id == lease.session_id,
            inbox.c.status == "running",
            inbox.c.joined,
            inbox.c.epoch == lease.epoch,
        )
        .order_by(inbox.c.ahead.desc(), inbox.c.position)
    )
    return [_joined(connection, row) for row in rows]


def _joined(connection: Connection, row: Row[*tuple[Any, ...]]) -> Delivery:
    delivery = delivery_from(row)
    # SQLAlchemy has read the time, and the commit hands it to the driver.
    return delivery._replace(joined=True, sent_at=as_stored(connection, row.enqueued_at))
