"""Outcomes of messages, and dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_utc, as_utc_or_none
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.errors import UnknownReceipt
from sessionsdb.messages.extra import extra_fields
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import UNFINISHED_SQL
from sessionsdb.operations.keys import MessageKey
from sessionsdb.operations.question_rows import read_open
from sessionsdb.types import Outcome, Receipt, SessionId, SessionMessage, Status


class OutcomeRow(NamedTuple):
    """The columns of a message that has an outcome, and of its reply if there is one."""

    namespace: str
    session_id: str
    position: int
    status: Status
    attempts: int
    error: str | None
    enqueued_at: datetime | str
    finished_at: datetime | str | None
    asked: bool | int
    seq: int | None
    role: str
    content: str
    created_at: datetime | str
    extra: str | None


_OF_MESSAGE = "i.status, i.attempts, i.error, i.enqueued_at, i.finished_at, i.asked"
_OF_REPLY = "m.seq, m.role, m.content, m.created_at, m.extra"

_COLUMNS = f"i.namespace, i.session_id, i.position, {_OF_MESSAGE}, {_OF_REPLY}"


@cache
def _one(reply_join: str) -> Statement:
    return Statement(f"""
SELECT {_COLUMNS} FROM inbox AS i {reply_join}
WHERE i.namespace = :namespace AND i.session_id = :session_id AND i.position = :position
""")


def outcome(connection: Connection, namespace: str, session_id: str, position: int) -> Outcome:
    """Return the outcome of one message. Raises ``UnknownReceipt``."""
    row = _one(dialect_of(connection).reply_join).row(
        connection, {"namespace": namespace, "session_id": session_id, "position": position}
    )
    if row is None:
        raise UnknownReceipt(session_id, position)
    return _outcome(connection, OutcomeRow(*row))


_IS_GIVEN = """
i.namespace = g.namespace AND i.session_id = g.session_id AND i.position = g.position
"""


@cache
def _of_given(given: str, reply_join: str) -> Statement:
    return Statement(f"SELECT {_COLUMNS} FROM {given} JOIN inbox AS i ON {_IS_GIVEN} {reply_join}")


@cache
def _finished_of_given(given: str, reply_join: str) -> Statement:
    return Statement(f"""
SELECT g.namespace, g.session_id, g.position, {_OF_MESSAGE}, {_OF_REPLY}
FROM {given} LEFT JOIN inbox AS i ON {_IS_GIVEN} {reply_join}
WHERE i.position IS NULL OR i.status NOT IN {UNFINISHED_SQL}
""")


def outcomes(connection: Connection, receipts: Sequence[MessageKey]) -> dict[MessageKey, Outcome]:
    """Return the outcomes of many messages in one query. Unknown messages are left out."""
    dialect = dialect_of(connection)
    statement = _of_given(dialect.receipt_table, dialect.reply_join)
    rows = map(OutcomeRow._make, statement.rows(connection, dialect.receipt_values(receipts)))
    return {row[:3]: _outcome(connection, row) for row in rows}


def finished(
    connection: Connection, receipts: Sequence[MessageKey]
) -> dict[MessageKey, Outcome | None]:
    """Return the final outcomes of many messages in one query, and ``None`` for unknown messages.

    Messages that are not finished are left out, so thousands of them cost a look-up each, and no
    row.
    """
    dialect = dialect_of(connection)
    statement = _finished_of_given(dialect.receipt_table, dialect.reply_join)
    rows = map(OutcomeRow._make, statement.rows(connection, dialect.receipt_values(receipts)))
    # An unknown message has no status.
    return {row[:3]: _outcome(connection, row) if row.status else None for row in rows}


@cache
def _dead(reply_join: str, *, of_session: bool) -> Statement:
    session = "AND i.session_id = :session_id" if of_session else ""
    return Statement(f"""
SELECT {_COLUMNS} FROM inbox AS i {reply_join}
WHERE i.namespace = :namespace AND i.dead_at IS NOT NULL {session}
ORDER BY i.dead_at DESC, i.session_id DESC, i.position DESC
LIMIT :limit
""")


def dead_letters(
    connection: Connection, namespace: str, session_id: str | None, *, limit: int
) -> list[Outcome]:
    """Return the newest ``limit`` dead letters, newest last."""
    statement = _dead(dialect_of(connection).reply_join, of_session=session_id is not None)
    rows = statement.rows(
        connection, {"namespace": namespace, "session_id": session_id, "limit": limit}
    )
    return [_outcome(connection, OutcomeRow(*row)) for row in reversed(rows)]


def select_with_message(reply_join: str) -> str:
    """Return the beginning of a statement with the rows of ``outcome_with_message``."""
    return f"SELECT {_COLUMNS}, i.content, i.sender, i.extra FROM inbox AS i {reply_join}"


def outcome_with_message(connection: Connection, row: Row) -> Outcome:
    """Return the outcome of a row of ``select_with_message``, with its message."""
    *columns, content, sender, extra = row
    of_message = OutcomeRow(*columns)
    message = SessionMessage.from_fields(
        role="user",
        content=content,
        timestamp=as_utc(of_message.enqueued_at),
        seq=None,
        sender=None if sender is None else SessionId(sender),
        **extra_fields(extra),
    )
    return _outcome(connection, of_message, message)


def _outcome(
    connection: Connection, row: OutcomeRow, message: SessionMessage | None = None
) -> Outcome:
    reply = question = None
    if row.asked:
        question = read_open(connection, (row.namespace, row.session_id), row.position)
    if row.seq is not None and row.status in ("done", "cancelled"):
        reply = SessionMessage.from_fields(
            role=row.role,
            content=row.content,
            timestamp=as_utc(row.created_at),
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
        enqueued_at=as_utc(row.enqueued_at),
        finished_at=as_utc_or_none(row.finished_at),
        message=message,
        question=question,
    )
