"""A send that looks first whether its session is busy: ``when_busy`` of ``send``."""

from __future__ import annotations

from typing import Literal, NamedTuple

from sqlalchemy import Connection, select

from sessionsdb.engine.tasks import result_or_raise
from sessionsdb.errors import SessionBusy
from sessionsdb.operations import question_answers, stopping
from sessionsdb.operations.inbox_types import Send
from sessionsdb.operations.row_conditions import is_mailbox
from sessionsdb.operations.row_locks import lock_mailboxes
from sessionsdb.schema import inbox, mailboxes
from sessionsdb.types import Limits, Receipt


class BusySent(NamedTuple):
    """The result of a send to a session that may be busy."""

    receipt: Receipt
    stopped: bool
    """Whether messages were cancelled or a question was withdrawn."""


def send(
    connection: Connection,
    request: Send,
    limits: Limits,
    when_busy: Literal["interrupt", "reject"],
) -> BusySent:
    """Queue a message for a session that is not busy, or that is interrupted first.

    A known idempotency key returns the first receipt, and neither rejects nor stops anything. The
    mailbox is locked before the look, so no other send and no claim comes between. Raises
    ``SessionBusy`` and the errors of ``mailbox.send``: nothing is written and nothing is stopped
    then.
    """
    key = (request.namespace, request.session_id)
    lock_mailboxes(connection, [key])
    stopped = False
    if not _knows_key(connection, request):
        if when_busy == "reject":
            _require_free(connection, request)
        elif _is_open(connection, request):
            stopped = stopping.interrupt(connection, *key).changed
    [answer] = question_answers.send(connection, [request], limits)
    return BusySent(result_or_raise(answer), stopped)


def _knows_key(connection: Connection, request: Send) -> bool:
    if request.idempotency_key is None:
        return False
    known = connection.execute(
        select(inbox.c.position).where(
            inbox.c.namespace == request.namespace,
            inbox.c.session_id == request.session_id,
            inbox.c.idempotency_key == request.idempotency_key,
        )
    )
    return known.first() is not None


def _is_open(connection: Connection, request: Send) -> bool:
    closed = connection.execute(
        select(mailboxes.c.closed).where(*is_mailbox((request.namespace, request.session_id)))
    ).scalar()
    return closed is not None and not closed


def _require_free(connection: Connection, request: Send) -> None:
    """Raise ``SessionBusy`` if anything is unfinished there.

    A session that is held waits for the answer to a question.
    """
    busy = connection.execute(
        select(mailboxes.c.pending, mailboxes.c.owner, mailboxes.c.question).where(
            *is_mailbox((request.namespace, request.session_id))
        )
    ).one_or_none()
    if busy is None:
        return
    is_held = busy.question is not None
    if busy.pending > 0 or busy.owner or is_held:
        raise SessionBusy(request.session_id, busy.pending, is_held=is_held)
