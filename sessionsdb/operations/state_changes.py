"""Changes to many mailboxes and their messages at the ends of leases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    bindparam,
    case,
    func,
    update,
)

from sessionsdb.engine import clock
from sessionsdb.engine.statement import Statement
from sessionsdb.operations import usage
from sessionsdb.operations.inbox_types import NO_USAGE, UNFINISHED_SQL, Usage
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.running_messages import RunningMessage
from sessionsdb.schema import PlainText, UTCDateTime, inbox, mailboxes

NO_LEASE: dict[str, Any] = {
    "owner": None,
    "lease_until": None,
    "taken": 0,
    "last_taken": 0,
}
"""The columns of a mailbox without a lease."""

NO_LEASE_SQL = "owner = NULL, lease_until = NULL, taken = 0, last_taken = 0"
"""The same columns in a ``Statement``."""

THIS_MAILBOX = (
    mailboxes.c.namespace == bindparam("of_namespace"),
    mailboxes.c.session_id == bindparam("of_session"),
)
_THIS_MESSAGE = (
    inbox.c.namespace == bindparam("of_namespace"),
    inbox.c.session_id == bindparam("of_session"),
    inbox.c.position == bindparam("at"),
)
_PRESENT = bindparam("present", type_=UTCDateTime)
_ERROR = bindparam("error", type_=PlainText)
_DEAD = bindparam("dead", type_=BigInteger)
_MORE_RERUNS = bindparam("reruns", type_=Integer)

_RETURN_TO_PENDING = (
    update(inbox)
    .where(*_THIS_MESSAGE)
    .values(
        status="pending",
        attempts=inbox.c.attempts - bindparam("uncounted", type_=Integer),
        joined=False,
        # A failed attempt ends a row of reruns. A release leaves it as it is.
        reruns=case((_ERROR.is_not(None), 0), else_=inbox.c.reruns + _MORE_RERUNS),
        error=func.coalesce(_ERROR, inbox.c.error),
    )
)

_MARK_DEAD = (
    update(inbox)
    .where(*_THIS_MESSAGE)
    .values(
        status="dead",
        error=_ERROR,
        finished_at=_PRESENT,
        dead_at=_PRESENT,
        ahead=False,
    )
)

_ADD_USAGE = update(inbox).where(*_THIS_MESSAGE).values(usage.ADDED)

# The lease ends, and the next message is ready.
_END_LEASE = (
    update(mailboxes)
    .where(*THIS_MAILBOX)
    .values(
        **NO_LEASE,
        pending=mailboxes.c.pending - _DEAD,
        # Dead messages at the head are holes, which the next claim walks over.
        head=case((mailboxes.c.pending > _DEAD, mailboxes.c.head), else_=mailboxes.c.tail + 1),
        ready_at=case((mailboxes.c.pending > _DEAD, _PRESENT), else_=None),
    )
)

# The lease ends, and the head message is tried again later.
_END_LEASE_WITH_BACKOFF = (
    update(mailboxes)
    .where(*THIS_MAILBOX)
    .values(**NO_LEASE, wake_at=bindparam("later", type_=UTCDateTime))
)

# The same answer as before while it is unfinished, then the first one of those that wait.
_POINT_TO_ANSWER = Statement(f"""
UPDATE mailboxes
SET answer = coalesce(
    (SELECT i.position FROM inbox AS i
     WHERE i.namespace = mailboxes.namespace AND i.session_id = mailboxes.session_id
       AND i.position = mailboxes.answer AND i.answers IS NOT NULL
       AND i.status IN {UNFINISHED_SQL}),
    (SELECT i.position FROM inbox AS i
     WHERE i.namespace = mailboxes.namespace AND i.session_id = mailboxes.session_id
       AND i.ahead AND i.answers IS NOT NULL AND i.status IN {UNFINISHED_SQL}
     ORDER BY i.position LIMIT 1)
)
WHERE namespace = :namespace AND session_id = :session_id
""")


def point_to_answers(connection: Connection, keys: Iterable[SessionKey]) -> None:
    """Let locked mailboxes, in which an answer was finished, point to the next one that waits.

    An answer that was requeued may wait behind another one.
    """
    for namespace, session_id in keys:
        _POINT_TO_ANSWER.rows(connection, {"namespace": namespace, "session_id": session_id})


def later(stored: ColumnElement[datetime], present: datetime) -> ColumnElement[datetime]:
    """Return the later of two times: a clock may go back."""
    return case((stored > present, stored), else_=present)


def key_parameters(key: SessionKey) -> dict[str, Any]:
    return {"of_namespace": key[0], "of_session": key[1]}


class StateChanges:
    """Changes to many mailboxes and their messages, made by one statement for each kind."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._returned: list[dict[str, Any]] = []
        self._dead: list[dict[str, Any]] = []
        self._used: list[dict[str, Any]] = []
        self._ended_leases: list[dict[str, Any]] = []
        self._waiting: list[dict[str, Any]] = []
        self._without_answer: list[SessionKey] = []

    def return_to_pending(
        self,
        key: SessionKey,
        messages: Iterable[RunningMessage],
        *,
        error: str | None = None,
        uncounted: int = 0,
        reruns: int = 0,
    ) -> None:
        change = {"error": error, "uncounted": uncounted, "reruns": reruns}
        self._returned += [
            {**key_parameters(key), "at": message.position, **change} for message in messages
        ]

    def mark_dead(self, key: SessionKey, messages: Iterable[RunningMessage], error: str) -> None:
        for message in messages:
            self._dead.append({**key_parameters(key), "at": message.position, "error": error})
            if message.answers is not None:
                self._without_answer.append(key)

    def add_usage(self, key: SessionKey, begun: Sequence[RunningMessage], used: Usage) -> None:
        """Add the tokens of a turn to the last message that it began with."""
        if begun and used != NO_USAGE:
            change = {**key_parameters(key), "at": begun[-1].position}
            self._used.append(change | usage.parameters(used))

    def end_lease(self, key: SessionKey, *, dead: int = 0) -> None:
        self._ended_leases.append({**key_parameters(key), "dead": dead})

    def wait(self, key: SessionKey, *, until: datetime) -> None:
        self._waiting.append({**key_parameters(key), "later": until})

    def apply(self) -> None:
        present: dict[str, datetime] = {}
        if self._dead or self._ended_leases:
            present["present"] = clock.read_now(self._connection)
        for statement, rows in (
            (_RETURN_TO_PENDING, self._returned),
            (_MARK_DEAD, [row | present for row in self._dead]),
            (_ADD_USAGE, self._used),
            (_END_LEASE, [row | present for row in self._ended_leases]),
            (_END_LEASE_WITH_BACKOFF, self._waiting),
        ):
            if rows:
                self._connection.execute(statement, rows)
        point_to_answers(self._connection, self._without_answer)
