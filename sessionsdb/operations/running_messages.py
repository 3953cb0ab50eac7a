"""The messages of running turns, read from the database and not from the memory of a worker."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, select

from sessionsdb.operations.keys import SessionKey, chunks
from sessionsdb.operations.row_conditions import AHEAD, MAX_KEYS, among
from sessionsdb.schema import inbox, mailboxes


class RunningMessage(NamedTuple):
    """A message that a running turn handles."""

    position: int
    attempts: int
    reruns: int
    joined: bool
    answers: int | None
    """The question that it answers, or whose expiry it tells."""


class RunningTurn(NamedTuple):
    """The running messages of one mailbox."""

    begun: list[RunningMessage]
    """The messages that the turn began with, in the order of the claim."""
    joined: list[RunningMessage]
    """The messages that joined the turn later, in the order of the claim."""

    @property
    def all(self) -> list[RunningMessage]:
        return self.begun + self.joined


NO_TURN = RunningTurn([], [])
"""The running messages of a mailbox that has none."""


def read_running(
    connection: Connection, keys: Collection[SessionKey]
) -> dict[SessionKey, RunningTurn]:
    """Return the running messages of these mailboxes, which are locked.

    They stand from ``head`` to ``last_taken``, or are ahead.
    """
    found: list[Any] = []
    for some in chunks(sorted(keys), MAX_KEYS):
        query = _select(some, ahead=False).union_all(_select(some, ahead=True))
        found += connection.execute(query)
    rows = sorted(found, key=lambda row: (not row.ahead, row.position))
    running: dict[SessionKey, RunningTurn] = {}
    for row in rows:
        turn = running.setdefault((row.namespace, row.session_id), RunningTurn([], []))
        part = turn.joined if row.joined else turn.begun
        part.append(
            RunningMessage(row.position, row.attempts, row.reruns, bool(row.joined), row.answers)
        )
    return running


def _select(keys: Collection[SessionKey], *, ahead: bool) -> Select[Any]:
    # Each query has a list of keys of its own: SQLAlchemy 2.0 can't send one list twice. The limit
    # leaves out no row. It keeps PostgreSQL from a search of the inbox by the session alone, which
    # reads all of its receipts.
    box = (
        select(
            mailboxes.c.namespace, mailboxes.c.session_id, mailboxes.c.head, mailboxes.c.last_taken
        )
        .where(among(keys))
        .limit(len(keys))
        .subquery()
    )
    if ahead:
        condition: ColumnElement[Any] = AHEAD
    else:
        in_order = inbox.c.position.between(box.c.head, box.c.last_taken)
        condition = and_(in_order, inbox.c.ahead.is_(False))
    return (
        select(
            inbox.c.namespace,
            inbox.c.session_id,
            inbox.c.position,
            inbox.c.attempts,
            inbox.c.reruns,
            inbox.c.joined,
            inbox.c.answers,
            inbox.c.ahead,
        )
        .join(
            box,
            and_(
                inbox.c.namespace == box.c.namespace,
                inbox.c.session_id == box.c.session_id,
            ),
        )
        .where(inbox.c.status == "running", condition)
    )
