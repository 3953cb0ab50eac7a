"""Answers to questions: the transition ``answer``, and sends beside an open question.

See ``questions.py``. The rules for receipts and repeated sends are those of ``send``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, select, update

from sessionsdb.engine import clock
from sessionsdb.engine.tasks import result_or_raise
from sessionsdb.errors import (
    IdempotencyConflict,
    QuestionAnswered,
    QuestionClosed,
    SessionsDBError,
    UnknownQuestion,
)
from sessionsdb.messages.digests import digest, extra_values, message_values
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import SENT_COLUMNS, USERS, AnswerWanted, Send
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.question_rows import question_id, read_question
from sessionsdb.operations.questions import close, queue_ahead
from sessionsdb.operations.row_conditions import is_mailbox
from sessionsdb.operations.row_locks import lock_mailboxes
from sessionsdb.operations.state_changes import later
from sessionsdb.schema import inbox, mailboxes, questions, sessions
from sessionsdb.types import Limits, Receipt


def answer(connection: Connection, request: Send, position: int) -> Receipt:
    """Answer a question, and return the receipt of the answer.

    The answer is handled before all other messages, and passes ``Limits.pending``. Raises
    ``UnknownQuestion``, ``QuestionAnswered``, ``QuestionClosed`` and ``IdempotencyConflict``.
    """
    key = (request.namespace, request.session_id)
    lock_mailboxes(connection, [key])
    if (known := _known(connection, request)) is not None:
        return known
    id = question_id(request.session_id, position)
    asked = read_question(connection, key, position)
    if asked is None:
        raise UnknownQuestion(id)
    if asked.status == "answered":
        if asked.answer_digest == _digest(request):
            return request.accepted(asked.answer_position, duplicate=True)
        raise QuestionAnswered(id)
    if asked.status != "open":
        raise QuestionClosed(id, asked.status)
    present = clock.read_now(connection)
    # The clock decides, not the moment at which a worker looks for expired questions.
    if asked.expires_at is not None and asked.expires_at <= present:
        raise QuestionClosed(id, "expired")
    return _queue_answer(connection, request, position, present)


def send_beside_question(
    connection: Connection, requests: Sequence[Send], limits: Limits
) -> list[Receipt | SessionsDBError]:
    """Send messages to sessions whose questions take the next message as their answer.

    The first message without a sender is the answer. All others are queued. The errors are those of
    ``send``.
    """
    lock_mailboxes(connection, sorted({(one.namespace, one.session_id) for one in requests}))
    return [_send_one(connection, request, limits) for request in requests]


def _send_one(connection: Connection, request: Send, limits: Limits) -> Receipt | SessionsDBError:
    key = (request.namespace, request.session_id)
    held = select(mailboxes.c.question).where(*is_mailbox(key), mailboxes.c.accepts_message)
    asked = connection.execute(
        select(questions.c.position, questions.c.expires_at).where(
            questions.c.namespace == key[0],
            questions.c.session_id == key[1],
            questions.c.position == held.scalar_subquery(),
        )
    ).one_or_none()
    if asked is None:  # answered, expired or withdrawn since the send was refused
        [answer] = dialect_of(connection).send(connection, [request], limits)
        return answer
    present = clock.read_now(connection)
    in_time = asked.expires_at is None or present < asked.expires_at
    if request.sender is None and in_time:
        try:
            known = _known(connection, request)
        except IdempotencyConflict as conflict:
            return conflict
        return known or _queue_answer(connection, request, asked.position, present)
    return send_behind_question(connection, request, limits)


def send_behind_question(
    connection: Connection, request: Send, limits: Limits
) -> Receipt | SessionsDBError:
    """Queue a message that is no person's answer behind an open question that takes messages.

    The caller has locked the mailbox, so no other send sees it without the mark.
    """
    key = (request.namespace, request.session_id)
    _set_accepts(connection, key, accepts=False)
    [answer] = dialect_of(connection).send(connection, [request], limits)
    _set_accepts(connection, key, accepts=True)
    return answer


def send(
    connection: Connection, requests: Sequence[Send], limits: Limits
) -> list[Receipt | SessionsDBError]:
    """Send messages inside a transaction: like ``mailbox.send``, and answers are taken too."""
    answers = dialect_of(connection).send(connection, requests, limits)
    for index, one in enumerate(answers):
        if isinstance(one, AnswerWanted):
            [answers[index]] = send_beside_question(connection, [requests[index]], limits)
    return answers


def _set_accepts(connection: Connection, key: SessionKey, *, accepts: bool) -> None:
    connection.execute(update(mailboxes).where(*is_mailbox(key)).values(accepts_message=accepts))


def _known(connection: Connection, request: Send) -> Receipt | None:
    """Return the receipt of the message that has the key already.

    Raises ``IdempotencyConflict``.
    """
    if request.idempotency_key is None:
        return None
    row = connection.execute(
        select(inbox.c.position, inbox.c.fingerprint).where(
            inbox.c.namespace == request.namespace,
            inbox.c.session_id == request.session_id,
            inbox.c.idempotency_key == request.idempotency_key,
        )
    ).first()
    if row is None:
        return None
    return result_or_raise(request.known(row.position, same=row.fingerprint == request.fingerprint))


def _digest(request: Send) -> str:
    """Return a digest of the message and its author."""
    return digest(*message_values(request.message), *(extra_values(request.extra) or (None,)))


def _queue_answer(
    connection: Connection, request: Send, position: int, present: datetime
) -> Receipt:
    key = (request.namespace, request.session_id)
    sent = dict(zip(SENT_COLUMNS, request.columns(USERS), strict=True))
    at = queue_ahead(connection, key, position, present, sent)
    close(connection, key, position, "answered", present, at, _digest(request))
    connection.execute(
        update(sessions)
        .where(sessions.c.namespace == key[0], sessions.c.id == key[1])
        .values(last_active=later(sessions.c.last_active, present))
    )
    return request.accepted(at)
