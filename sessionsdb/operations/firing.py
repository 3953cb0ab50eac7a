"""The sending of scheduled messages that are due.

The messages enter their inboxes, and their schedules get the next due times or are deleted, in one
transaction. So each due time is sent exactly once, also when a worker dies here. Two workers don't
meet at a schedule: each passes over the mailboxes that the other has locked.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, Row, and_, delete, select, tuple_, update
from sqlalchemy.types import TypeEngine

from sessionsdb.cron import Cron, InvalidCron
from sessionsdb.engine import clock
from sessionsdb.errors import InboxFull, SessionEnded, SessionsDBError, UnknownSession
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.messages.state_values import size_of
from sessionsdb.operations import mailbox, question_answers
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import AnswerWanted, Chain, Send
from sessionsdb.schema import KeyText, UTCDateTime, mailboxes, schedules
from sessionsdb.types import Limits, Receipt

log = logging.getLogger("sessionsdb.worker")

MAX_SCHEDULES = 100
"""The schedules of one transaction. It holds the locks of their mailboxes."""

MAX_MESSAGES = 1_000
"""About the most messages of one transaction."""

MAX_BYTES = 8 * 2**20
"""About the most bytes of the messages of one transaction. A statement of PostgreSQL holds at most
1 GB."""

CATCH_UP = 100
"""At most this many messages are sent for the missed due times of one schedule."""

RETRY_SECONDS = 1.0
"""The pause after a full inbox."""

UNREADABLE_SECONDS = 60.0
"""The pause after a schedule that this worker can't send. Another host may know its zone."""

_BEGINNING = datetime.min.replace(tzinfo=UTC)

ScheduleRow = Row[*tuple[Any, ...]]


class Fired(NamedTuple):
    """The numbers of messages that were sent, and of schedules whose inboxes were full."""

    messages: int
    refused: int


class Firing(NamedTuple):
    """A schedule that is due, and its due times to send now."""

    row: ScheduleRow
    times: list[datetime]
    next_due: datetime | None
    """``None``: there is no other due time."""
    next_try: datetime | None = None
    """Another time than ``next_due``: the first missed one, while others wait for the next
    transaction. So that transaction knows how many were sent."""

    @property
    def requests(self) -> list[Send]:
        row = self.row
        return [
            Send(
                row.namespace,
                row.session_id,
                StoredMessage("user", row.content, row.payload),
                fingerprint=uuid4().hex,
                sender=row.sender,
                chain=Chain(row.hops, row.origin),
                extra=row.extra,
            )
            for _ in self.times
        ]


def fire(
    connection: Connection,
    *,
    namespaces: Collection[str] | None,
    limits: Limits,
    limit: int = MAX_SCHEDULES,
) -> Fired:
    """Send the messages of at most ``limit`` schedules that are due, those first that are latest.

    A message without room in its inbox stays due. Its later due times are sent together with it.
    """
    present = clock.read_now(connection)
    firings: list[Firing] = []
    count = 0
    room = MAX_BYTES
    for row in _lock_due(connection, namespaces, present, limit):
        size = sum(size_of(text) for text in (row.content, row.payload, row.extra) if text)
        # One message is sent at least, however long it is.
        if count >= MAX_MESSAGES or (firings and size > room):
            break
        firing = _plan(connection, row, present, most=max(1, room // max(1, size)))
        if firing is not None:
            firings.append(firing)
            count += len(firing.times)
            room -= len(firing.times) * size
    requests = [request for firing in firings for request in firing.requests]
    answers = iter(_send(connection, requests, limits))
    sent = refused = 0
    for firing in firings:
        accepted, error = _count_accepted([next(answers) for _ in firing.times])
        _advance(connection, firing, accepted, error, present)
        sent += accepted
        refused += isinstance(error, InboxFull)
    return Fired(sent, refused)


def _lock_due(
    connection: Connection, namespaces: Collection[str] | None, present: datetime, limit: int
) -> Sequence[ScheduleRow]:
    """Return schedules that are due, and keep others from their mailboxes until the commit."""
    ids: list[tuple[str, str]] = []
    for namespace in _due_namespaces(connection, namespaces, present):
        ids += _lock_mailboxes(connection, namespace, present, limit - len(ids))
        if len(ids) >= limit:
            break
    if not ids:
        return []
    # Read again: another worker may have fired them before the lock.
    due = (
        select(schedules)
        .where(
            tuple_(schedules.c.namespace, schedules.c.id, types=[KeyText, KeyText]).in_(ids),
            schedules.c.try_at <= present,
        )
        .order_by(schedules.c.due_at, schedules.c.id)
    )
    return connection.execute(due).all()


def _due_namespaces(
    connection: Connection, namespaces: Collection[str] | None, present: datetime
) -> list[str | None]:
    """Return the namespaces to look at, one by one. ``None``: all of the database at once."""
    if namespaces is None:
        return [None]
    if len(namespaces) == 1:
        return list(namespaces)
    firsts = dialect_of(connection).first_schedules(connection, namespaces)
    return [name for name, first in sorted(firsts, key=lambda one: one[1]) if first <= present]


def _lock_mailboxes(
    connection: Connection, namespace: str | None, present: datetime, limit: int
) -> list[tuple[str, str]]:
    """Lock the mailboxes of due schedules as far as they are free, and return the schedules."""
    due = select(schedules.c.namespace, schedules.c.id).join(
        mailboxes,
        and_(
            mailboxes.c.namespace == schedules.c.namespace,
            mailboxes.c.session_id == schedules.c.session_id,
        ),
    )
    if namespace is None:
        due = due.where(schedules.c.try_at <= present).order_by(schedules.c.try_at)
    else:
        # By rows of both columns, so that ix_schedules_due is read from the first entry of the
        # namespace to the present. The planner would walk over those of others, too, for an equal
        # sign.
        place = tuple_(schedules.c.namespace, schedules.c.try_at)
        types: list[TypeEngine[Any]] = [KeyText, UTCDateTime()]
        due = due.where(
            place >= tuple_(namespace, _BEGINNING, types=types),
            place <= tuple_(namespace, present, types=types),
        ).order_by(schedules.c.namespace, schedules.c.try_at)
    locked = (
        due.limit(limit)
        .with_for_update(of=mailboxes, key_share=True, skip_locked=True)
        .subquery("l")  # Citus takes the lock of one table of a join in a subselect only.
    )
    rows = connection.execute(select(locked.c.namespace, locked.c.id))
    return [(row.namespace, row.id) for row in rows]


def _plan(
    connection: Connection, row: ScheduleRow, present: datetime, *, most: int
) -> Firing | None:
    """Return at most ``most`` due times to send. ``None``: the schedule can't be read here, and
    stays due."""
    if row.at is not None:
        return Firing(row, [row.at], None)
    try:
        cron = Cron.parse(row.cron, row.tz)
        one_by_one = 1
        if row.catch_up == "all" and row.refused_at is None:
            one_by_one = max(1, CATCH_UP - _count_sent(cron, row))
        times = [row.due_at]
        while (due := cron.next_after(times[-1])) <= present and len(times) < one_by_one:
            if len(times) == most:
                return Firing(row, times, due, next_try=min(row.try_at, row.due_at))
            times.append(due)
        return Firing(row, times, due if due > present else cron.next_after(present))
    except InvalidCron as error:
        log.warning("schedule %s of session %s can't be read: %s", row.id, row.session_id, error)
        later = present + timedelta(seconds=UNREADABLE_SECONDS)
        _set(connection, row, try_at=later)
        return None


def _count_sent(cron: Cron, row: ScheduleRow) -> int:
    """Return how many missed due times the transactions before have sent, at most ``CATCH_UP``."""
    count = 0
    moment = row.try_at
    while moment < row.due_at and count < CATCH_UP:
        moment = cron.next_after(moment)
        count += 1
    return count


def _send(
    connection: Connection, requests: Sequence[Send], limits: Limits
) -> list[Receipt | SessionsDBError]:
    """Send the messages. They are no answers of a person to an open question."""
    if not requests:
        return []
    answers = mailbox.send(connection, requests, limits)
    for index, answer in enumerate(answers):
        if isinstance(answer, AnswerWanted):
            answers[index] = question_answers.send_behind_question(
                connection, requests[index], limits
            )
    return answers


def _count_accepted(
    answers: Sequence[Receipt | SessionsDBError],
) -> tuple[int, SessionsDBError | None]:
    """Return how many messages entered the inbox, and the error of the first that did not."""
    for index, answer in enumerate(answers):
        if isinstance(answer, SessionsDBError):
            return index, answer
    return len(answers), None


def _advance(
    connection: Connection,
    firing: Firing,
    accepted: int,
    error: SessionsDBError | None,
    present: datetime,
) -> None:
    row = firing.row
    if isinstance(error, InboxFull):
        _set(
            connection,
            row,
            due_at=firing.times[accepted],
            try_at=present + timedelta(seconds=RETRY_SECONDS),
            refused_at=present,
            **({"last_fired_at": present} if accepted else {}),
        )
    elif isinstance(error, SessionEnded | UnknownSession):
        connection.execute(delete(schedules).where(*_is(row)))
    elif error is not None:
        log.warning("schedule %s of session %s can't be sent: %s", row.id, row.session_id, error)
        later = present + timedelta(seconds=UNREADABLE_SECONDS)
        _set(connection, row, due_at=firing.times[accepted], try_at=later)
    elif firing.next_due is None:
        connection.execute(delete(schedules).where(*_is(row)))
    else:
        _set(
            connection,
            row,
            due_at=firing.next_due,
            try_at=firing.next_try or firing.next_due,
            refused_at=None,
            last_fired_at=present,
        )


def _set(connection: Connection, row: ScheduleRow, **values: Any) -> None:
    connection.execute(update(schedules).where(*_is(row)).values(**values))


def _is(row: ScheduleRow) -> Any:
    return schedules.c.namespace == row.namespace, schedules.c.id == row.id
