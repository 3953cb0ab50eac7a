"""Outcomes of messages, and dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, or_, select

from sessionsdb.engine import functions
from sessionsdb.errors import UnknownReceipt
from sessionsdb.messages.extra import extra_fields
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import MessageKey
from sessionsdb.operations.question_rows import read_open
from sessionsdb.schema import inbox, messages
from sessionsdb.types import Outcome, Receipt, SessionId, SessionMessage

# The reply of a turn is its last assistant message. Tool messages before it are not the reply, nor
# is a message of nothing but reasoning behind it, which has no text and a payload.
_REPLY_SEQ = (
    select(functions.maximum(messages.c.seq))
    .where(
        messages.c.namespace == inbox.c.namespace,
        messages.c.session_id == inbox.c.session_id,
        messages.c.seq.between(inbox.c.first_seq, inbox.c.last_seq),
        messages.c.role == "assistant",
        or_(messages.c.content != "", messages.c.payload.is_(None)),
    )
    .correlate(inbox)
    .scalar_subquery()
)

_OUTCOME = select(
    inbox.c.namespace,
    inbox.c.session_id,
    inbox.c.position,
    inbox.c.status,
    inbox.c.attempts,
    inbox.c.error,
    inbox.c.enqueued_at,
    inbox.c.finished_at,
    messages.c.seq,
    messages.c.role,
    messages.c.content,
    messages.c.created_at,
    messages.c.extra,
    inbox.c.asked,
).outerjoin_from(
    inbox,
    messages,
    and_(
        messages.c.namespace == inbox.c.namespace,
        messages.c.session_id == inbox.c.session_id,
        messages.c.seq == _REPLY_SEQ,
    ),
)

_ONE = _OUTCOME.where(
    inbox.c.namespace == bindparam("namespace"),
    inbox.c.session_id == bindparam("session_id"),
    inbox.c.position == bindparam("position"),
)


def outcome(connection: Connection, namespace: str, session_id: str, position: int) -> Outcome:
    """Return the outcome of one message. Raises ``UnknownReceipt``."""
    row = connection.execute(
        _ONE, {"namespace": namespace, "session_id": session_id, "position": position}
    ).one_or_none()
    if row is None:
        raise UnknownReceipt(session_id, position)
    return _outcome(connection, row)


def outcomes(connection: Connection, receipts: Sequence[MessageKey]) -> dict[MessageKey, Outcome]:
    """Return the outcomes of many messages in one query. Unknown messages are left out."""
    given = dialect_of(connection).receipt_table(receipts)
    rows = connection.execute(
        _OUTCOME.join(
            given,
            and_(
                inbox.c.namespace == given.c.namespace,
                inbox.c.session_id == given.c.session_id,
                inbox.c.position == given.c.position,
            ),
        )
    )
    return {
        (row.namespace, row.session_id, row.position): _outcome(connection, row) for row in rows
    }


def dead_letters(
    connection: Connection, namespace: str, session_id: str | None, *, limit: int
) -> list[Outcome]:
    """Return the newest ``limit`` dead letters, newest last."""
    statement = (
        _OUTCOME.where(inbox.c.namespace == namespace, inbox.c.dead_at.is_not(None))
        .order_by(inbox.c.dead_at.desc(), inbox.c.session_id.desc(), inbox.c.position.desc())
        .limit(limit)
    )
    if session_id is not None:
        statement = statement.where(inbox.c.session_id == session_id)
    return [_outcome(connection, row) for row in connection.execute(statement).all()[::-1]]


def outcomes_with_messages(
    connection: Connection, *conditions: ColumnElement[bool]
) -> list[Outcome]:
    """Return the outcomes of these messages by position, each with its message."""
    statement = (
        _OUTCOME.add_columns(
            inbox.c.content.label("sent"), inbox.c.sender, inbox.c.extra.label("sent_extra")
        )
        .where(*conditions)
        .order_by(inbox.c.position)
    )
    return [
        _outcome(
            connection,
            row,
            SessionMessage.from_fields(
                role="user",
                content=row.sent,
                timestamp=row.enqueued_at,
                seq=None,
                sender=None if row.sender is None else SessionId(row.sender),
                **extra_fields(row.sent_extra),
            ),
        )
        for row in connection.execute(statement)
    ]


def _outcome(
    connection: Connection, row: Row[*tuple[Any, ...]], message: SessionMessage | None = None
) -> Outcome:
    reply = question = None
    if row.asked:
        question = read_open(connection, (row.namespace, row.session_id), row.position)
    if row.status in ("done", "cancelled") and row.seq is not None:
        reply = SessionMessage.from_fields(
            role=row.role,
            content=row.content,
            timestamp=row.created_at,
            seq=row.seq,
            sender=None,
            **extra_fields(row.extra),
        )
    return Outcome.from_fields(
        receipt=Receipt.from_fields(
            session_id=SessionId(row.session_id), position=row.position, duplicate=False
        ),
        status=row.status,
        attempts=row.attempts,
        reply=reply,
        error=row.error,
        enqueued_at=row.enqueued_at,
        finished_at=row.finished_at,
        message=message,
        question=question,
    )
