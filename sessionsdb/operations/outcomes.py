"""Outcomes of messages, and dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    and_,
    bindparam,
    or_,
    select,
)

from sessionsdb.engine import functions
from sessionsdb.errors import UnknownReceipt
from sessionsdb.messages.extra import extra_fields
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import MessageKey
from sessionsdb.operations.question_rows import read_open
from sessionsdb.schema import inbox, messages
from sessionsdb.types import FINAL_STATUSES, Outcome, Receipt, SessionId, SessionMessage

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

_COLUMNS = (
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
)

_IS_REPLY = and_(
    messages.c.namespace == inbox.c.namespace,
    messages.c.session_id == inbox.c.session_id,
    messages.c.seq == _REPLY_SEQ,
)

_OUTCOME = select(
    inbox.c.namespace, inbox.c.session_id, inbox.c.position, *_COLUMNS
).outerjoin_from(inbox, messages, _IS_REPLY)

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
    dialect = dialect_of(connection)
    rows = connection.execute(_of_given(dialect.receipt_table()), dialect.receipt_values(receipts))
    return {
        (row.namespace, row.session_id, row.position): _outcome(connection, row) for row in rows
    }


def finished(
    connection: Connection, receipts: Sequence[MessageKey]
) -> dict[MessageKey, Outcome | None]:
    """Return the final outcomes of many messages in one query, and ``None`` for unknown messages.

    Messages that are not finished are left out, so thousands of them cost a look-up each, and no
    row.
    """
    dialect = dialect_of(connection)
    rows = connection.execute(
        _finished_of_given(dialect.receipt_table()), dialect.receipt_values(receipts)
    )
    return {
        (row.namespace, row.session_id, row.position): (
            None if row.status is None else _outcome(connection, row)
        )
        for row in rows
    }


# To build a statement takes 0.2 ms, as long as to run it for one receipt.
@cache
def _of_given(given: FromClause) -> Select[*tuple[Any, ...]]:
    return _OUTCOME.join(given, _is_given(given))


@cache
def _finished_of_given(given: FromClause) -> Select[*tuple[Any, ...]]:
    return (
        select(given.c.namespace, given.c.session_id, given.c.position, *_COLUMNS)
        .select_from(given.outerjoin(inbox, _is_given(given)).outerjoin(messages, _IS_REPLY))
        .where(or_(inbox.c.position.is_(None), inbox.c.status.in_(sorted(FINAL_STATUSES))))
    )


def _is_given(given: FromClause) -> ColumnElement[bool]:
    return and_(
        inbox.c.namespace == given.c.namespace,
        inbox.c.session_id == given.c.session_id,
        inbox.c.position == given.c.position,
    )


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
