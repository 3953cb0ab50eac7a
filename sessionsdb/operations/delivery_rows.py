"""The rows of claimed messages: their columns in SQL, and leases made of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sessionsdb.errors import DamagedValue
from sessionsdb.messages.codec import StoredMessage, from_inbox
from sessionsdb.operations.inbox_types import Chain, Delivery, Lease
from sessionsdb.operations.session_rows import SessionRow


class DeliveryRow(NamedTuple):
    """The columns of ``inbox`` for a ``Delivery``, in the order in which statements select them."""

    position: int
    content: str
    payload: str | None
    sender: str | None
    hops: int
    origin: str | None
    trace: str | None
    attempts: int
    enqueued_at: datetime | str
    ahead: bool
    extra: str | None
    answers: int | None


DELIVERY_COLUMNS = ", ".join(f"i.{name}" for name in DeliveryRow._fields)
"""The columns of a ``DeliveryRow`` in SQL, from ``inbox AS i``."""

_DELIVERY_WIDTH = len(DeliveryRow._fields)


def session_from(columns: Sequence[Any]) -> SessionRow:
    """Return the session of a row of ``DELIVERY_COLUMNS`` and ``SESSION_COLUMNS``."""
    return SessionRow._make(columns[_DELIVERY_WIDTH:])


def delivery_from(columns: Sequence[Any], *, tried: int = 0) -> Delivery:
    """Return the message of a row that begins with ``DELIVERY_COLUMNS``.

    ``tried`` is added to its attempts. A damaged message gets a ``fault``: an error would end the
    claim of other sessions too.
    """
    (
        position,
        content,
        payload,
        sender,
        hops,
        origin,
        trace,
        attempts,
        enqueued_at,
        ahead,
        extra,
        answers,
        *_,
    ) = columns
    fault: DamagedValue | None = None
    try:
        message = from_inbox(content, payload)
    except DamagedValue as damage:
        message, fault = StoredMessage("user", content, payload), damage
    return Delivery(
        position,
        message,
        sender,
        attempts + tried,
        enqueued_at,
        Chain(hops, origin),
        extra,
        trace,
        bool(ahead),
        answers=answers,
        fault=fault,
    )


def lease_from(
    namespace: str, session: SessionRow, epoch: int, deliveries: list[Delivery], unfinished: int
) -> Lease:
    """Make a lease. ``unfinished`` counts the session's messages with the deliveries."""
    return Lease(
        namespace,
        session.id,
        epoch,
        deliveries,
        session.rewrites,
        session.withdrawn,
        session.report == "each",
        session,
        unfinished - len(deliveries),
    )
