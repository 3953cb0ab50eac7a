"""Questions to people: the transitions ``hold``, ``answer``, ``expire`` and ``withdraw``.

See ``mailbox.py``. A mailbox that is held has the position of its open question, and ``wake_at`` is
the expiry of the question. Each transition locks the mailbox first. So of an answer, an expiry, an
interrupt and an end at the same moment one comes first, and the others see what it did.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    Connection,
    Row,
    and_,
    case,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from sessionsdb.engine import clock
from sessionsdb.engine.tasks import result_or_raise
from sessionsdb.errors import (
    IdempotencyConflict,
    QuestionAnswered,
    QuestionClosed,
    SessionsDBError,
    UnknownQuestion,
)
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.messages.extra import encode_extra
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import SENT_COLUMNS, USERS, AnswerWanted, Lease, Send
from sessionsdb.operations.keys import SessionKey, is_mailbox, is_message
from sessionsdb.operations.question_rows import (
    SELECT_OPEN,
    Ask,
    is_question,
    open_question,
    question_id,
    read_question,
)
from sessionsdb.operations.row_locks import lock_mailboxes
from sessionsdb.operations.state_changes import later
from sessionsdb.schema import inbox, mailboxes, questions, sessions
from sessionsdb.types import Limits, OpenQuestion, Receipt

NEVER = datetime(9999, 1, 1, tzinfo=UTC)
"""The ``wake_at`` of a mailbox whose question does not expire."""

EXPIRY_AUTHOR = "sessionsdb"
"""The author of the notice that a question has expired."""

EXPIRY_TEXT = "The question has expired without an answer."

NOT_HELD: dict[str, Any] = {"question": None, "accepts_message": False}
"""The columns of a mailbox without an open question."""


# ---- hold --------------------------------------------------------------------------------------


def hold(connection: Connection, lease: Lease, ask: Ask) -> None:
    """Hold a session whose turn has committed in this transaction, and asks a question."""
    present = clock.read_now(connection)
    position = lease.deliveries[-1].position
    expires_at = None
    if ask.expires_in is not None:
        expires_at = present + timedelta(seconds=ask.expires_in)
    connection.execute(
        insert(questions).values(
            namespace=lease.namespace,
            session_id=lease.session.id,
            position=position,
            prompt=ask.prompt,
            payload=ask.payload,
            accept_message=ask.accept_message,
            status="open",
            asked_at=present,
            expires_at=expires_at,
        )
    )
    connection.execute(
        update(inbox)
        .where(*is_message(lease.namespace, lease.session.id, position))
        .values(asked=True)
    )
    connection.execute(
        update(mailboxes)
        .where(*is_mailbox(lease.key))
        .values(
            ready_at=None,
            wake_at=expires_at or NEVER,
            question=position,
            accepts_message=ask.accept_message,
        )
    )


def mark_seen(connection: Connection, lease: Lease) -> None:
    """Record the commit of a turn that has seen that a question was withdrawn."""
    connection.execute(
        update(sessions)
        .where(
            sessions.c.namespace == lease.namespace,
            sessions.c.id == lease.session.id,
            sessions.c.withdrawn == lease.withdrawn,
        )
        .values(withdrawn=None)
    )


# ---- answer ------------------------------------------------------------------------------------


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
    asked = connection.execute(
        select(questions.c.position, questions.c.expires_at)
        .join(
            mailboxes,
            and_(
                mailboxes.c.namespace == questions.c.namespace,
                mailboxes.c.session_id == questions.c.session_id,
                mailboxes.c.question == questions.c.position,
            ),
        )
        .where(*is_mailbox(key), mailboxes.c.accepts_message)
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
    given = [*request.message, request.extra]
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()


def _queue_answer(
    connection: Connection, request: Send, position: int, present: datetime
) -> Receipt:
    key = (request.namespace, request.session_id)
    sent = dict(zip(SENT_COLUMNS, request.columns(USERS), strict=True))
    at = _queue(connection, key, position, present, sent)
    _close(connection, key, position, "answered", present, at, _digest(request))
    connection.execute(
        update(sessions)
        .where(sessions.c.namespace == key[0], sessions.c.id == key[1])
        .values(last_active=later(sessions.c.last_active, present))
    )
    return request.accepted(at)


def _queue(
    connection: Connection,
    key: SessionKey,
    question: int,
    present: datetime,
    sent: dict[str, Any],
) -> int:
    """End the hold of a locked mailbox by a message that is claimed before all others."""
    position = connection.execute(
        update(mailboxes)
        .where(*is_mailbox(key))
        .values(
            **NOT_HELD,
            tail=mailboxes.c.tail + 1,
            pending=mailboxes.c.pending + 1,
            answer=mailboxes.c.tail + 1,
            wake_at=None,
            ready_at=present,
        )
        .returning(mailboxes.c.tail)
    ).scalar_one()
    connection.execute(
        insert(inbox).values(
            **(sent | {"hops": sent.get("hops") or 0}),
            namespace=key[0],
            session_id=key[1],
            position=position,
            status="pending",
            enqueued_at=present,
            ahead=True,
            answers=question,
        )
    )
    return int(position)


def _close(
    connection: Connection,
    key: SessionKey,
    position: int,
    status: str,
    present: datetime,
    answer_position: int | None = None,
    digest: str | None = None,
) -> None:
    connection.execute(
        update(questions)
        .where(*is_question(key, position))
        .values(
            status=status,
            closed_at=present,
            answer_position=answer_position,
            answer_digest=digest,
        )
    )


def read_of_turn(connection: Connection, lease: Lease) -> Row[*tuple[Any, ...]] | None:
    """Return the question whose answer, expiry or withdrawal a turn is to see."""
    answered = (one.answers for one in lease.deliveries if one.answers is not None)
    position = next(answered, lease.withdrawn)
    row = None if position is None else read_question(connection, lease.key, position)
    return row if row is not None and row.status in ("answered", "expired", "withdrawn") else None


# ---- expire, withdraw, end ---------------------------------------------------------------------


def expire(connection: Connection, key: SessionKey, position: int) -> None:
    """End the hold of a locked mailbox whose question has expired.

    One notice is queued ahead of all messages. Its turn sees that there is no answer.
    """
    present = clock.read_now(connection)
    notice = StoredMessage("user", EXPIRY_TEXT, None)
    sent = {
        "content": notice.content,
        "extra": encode_extra(EXPIRY_AUTHOR, None),
        "fingerprint": uuid4().hex,
    }
    at = _queue(connection, key, position, present, sent)
    _close(connection, key, position, "expired", present, at)


def withdraw(connection: Connection, key: SessionKey, position: int) -> None:
    """End the hold of a locked mailbox and session without an answer. The next turn sees it."""
    present = clock.read_now(connection)
    connection.execute(
        update(mailboxes)
        .where(*is_mailbox(key))
        .values(
            **NOT_HELD,
            wake_at=None,
            ready_at=case((mailboxes.c.pending > 0, literal(present, mailboxes.c.ready_at.type))),
        )
    )
    _mark_withdrawn(connection, key, position, present)


def withdraw_answer(connection: Connection, key: SessionKey, positions: Collection[int]) -> None:
    """Withdraw the question whose answer or notice is cancelled, if it is among ``positions``.

    The mailbox and the session are locked.
    """
    if not positions:
        return
    question = connection.execute(
        select(inbox.c.answers)
        .join(
            mailboxes,
            and_(
                mailboxes.c.namespace == inbox.c.namespace,
                mailboxes.c.session_id == inbox.c.session_id,
                mailboxes.c.answer == inbox.c.position,
            ),
        )
        .where(*is_mailbox(key), inbox.c.position.in_(positions))
    ).scalar()
    if question is None:
        return
    connection.execute(update(mailboxes).where(*is_mailbox(key)).values(answer=None))
    _mark_withdrawn(connection, key, question, clock.read_now(connection))


def _mark_withdrawn(
    connection: Connection, key: SessionKey, position: int, present: datetime
) -> None:
    connection.execute(
        update(questions)
        .where(*is_question(key, position))
        .values(status="withdrawn", closed_at=present)
    )
    connection.execute(
        update(sessions)
        .where(sessions.c.namespace == key[0], sessions.c.id == key[1])
        .values(withdrawn=position)
    )


def close_at_end(connection: Connection, key: SessionKey, present: Any) -> None:
    """Close the open question of a session that ends. Its mailbox and session are locked."""
    connection.execute(
        update(questions)
        .where(
            questions.c.namespace == key[0],
            questions.c.session_id == key[1],
            questions.c.closed_at.is_(None),
        )
        .values(status="ended", closed_at=present)
    )


def is_notice(connection: Connection, key: SessionKey, question: int | None) -> bool:
    """Return whether the message that answers ``question`` is the notice of its expiry.

    The notice has no row in the transcript.
    """
    if question is None:
        return False
    row = read_question(connection, key, question)
    return row is not None and row.status == "expired"


# ---- list --------------------------------------------------------------------------------------


def list_open(
    connection: Connection,
    namespace: str,
    session_id: str | None,
    *,
    limit: int,
    after: tuple[datetime, str, int] | None,
    cursor: tuple[str, int] | None = None,
) -> list[OpenQuestion]:
    """Return the open questions behind ``after``, the oldest first, equal times by session.

    ``cursor`` names the place behind which they stand by a question, which may be closed. Raises
    ``UnknownSession`` and ``UnknownQuestion``.
    """
    if session_id is not None:
        registry.require(connection, namespace, session_id)
    if cursor is not None:
        before = read_question(connection, (namespace, cursor[0]), cursor[1])
        if before is None:
            raise UnknownQuestion(question_id(*cursor))
        after = (before.asked_at, *cursor)
    order = (questions.c.asked_at, questions.c.session_id, questions.c.position)
    statement = (
        SELECT_OPEN.where(
            questions.c.namespace == namespace,
            or_(questions.c.expires_at.is_(None), questions.c.expires_at > clock.now(connection)),
        )
        .order_by(*order)
        .limit(limit)
    )
    if session_id is not None:
        statement = statement.where(questions.c.session_id == session_id)
    if after is not None:
        edge = [literal(value, column.type) for value, column in zip(after, order, strict=True)]
        statement = statement.where(tuple_(*order) > tuple_(*edge))
    return [open_question(row) for row in connection.execute(statement)]
