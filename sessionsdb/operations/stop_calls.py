"""The calls ``cancel`` and ``interrupt``: a transition of ``stopping.py``, then the outcomes."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.operations import outcomes, stopping
from sessionsdb.types import Outcome


class Stopped(NamedTuple):
    """The outcomes of the messages of a call, in order."""

    outcomes: list[Outcome]
    changed: bool
    """Whether the call changed anything."""


def cancel(
    connection: Connection, namespace: str, session_id: str, position: int, *, keep_partial: bool
) -> Stopped:
    """Cancel one message unless it is final, and return its outcome. Raises ``UnknownReceipt``."""
    changed = stopping.cancel(
        connection, namespace, session_id, position, keep_partial=keep_partial
    )
    return Stopped([outcomes.outcome(connection, namespace, session_id, position)], changed)


def interrupt(
    connection: Connection,
    namespace: str,
    session_id: str,
    *,
    subtree: bool,
    keep_partial: bool,
) -> Stopped:
    """Cancel all messages that run or are tried again later, and return their outcomes.

    The sessions are in the order of their ids, the messages in the order of the claim. Raises
    ``UnknownSession``.
    """
    stopped = stopping.interrupt(
        connection, namespace, session_id, subtree=subtree, keep_partial=keep_partial
    )
    receipts = [(namespace, *place) for place in stopped.places]
    found = outcomes.outcomes(connection, receipts) if receipts else {}
    return Stopped([found[receipt] for receipt in receipts], stopped.changed)
