"""The list of open questions, page by page."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, literal, or_, tuple_

from sessionsdb.engine import clock
from sessionsdb.errors import UnknownQuestion
from sessionsdb.operations import registry
from sessionsdb.operations.question_rows import (
    SELECT_OPEN,
    open_question,
    question_id,
    read_question,
)
from sessionsdb.schema import questions
from sessionsdb.types import OpenQuestion


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
