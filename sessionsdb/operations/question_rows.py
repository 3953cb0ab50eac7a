"""Rows of ``questions``, and the values that are made from them."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, Table, and_, select

from sessionsdb.errors import InvalidMessage
from sessionsdb.messages.codec import encode_data
from sessionsdb.messages.json_text import parse, replace_unstorable
from sessionsdb.operations.keys import SessionKey
from sessionsdb.schema import mailboxes, questions
from sessionsdb.types import OpenQuestion, Question, Receipt, SessionId


class Ask(NamedTuple):
    """A question that the commit of a turn asks, encoded."""

    prompt: str
    payload: str | None
    accept_message: bool
    expires_in: float | None


def encode_question(question: Question, *, max_bytes: int) -> Ask:
    """Return the columns of a question.

    Raises ``InvalidMessage`` if its prompt and data are not JSON, or larger than ``max_bytes``.
    """
    prompt = replace_unstorable(question.prompt)
    try:
        payload = encode_data(
            {"prompt": question.prompt, "data": question.data}, max_bytes=max_bytes
        )
    except InvalidMessage as error:
        raise InvalidMessage(f"the question can't be asked: {error}") from None
    plain = question.data is None and prompt == question.prompt
    return Ask(prompt, None if plain else payload, question.accept_message, question.expires_in)


def question_id(session_id: str, position: int) -> str:
    """Return the id of the question that the turn over the message at ``position`` has asked."""
    return f"{session_id}:{position}"


def is_question(key: SessionKey, position: int) -> tuple[Any, ...]:
    """Return the conditions for one question."""
    return (
        questions.c.namespace == key[0],
        questions.c.session_id == key[1],
        questions.c.position == position,
    )


def read_question(
    connection: Connection, key: SessionKey, position: int
) -> Row[*tuple[Any, ...]] | None:
    """Return the row of a question, ``None`` if there is none."""
    return connection.execute(select(questions).where(*is_question(key, position))).one_or_none()


# ---- open questions beside other rows ----------------------------------------------------------


OPEN = (
    questions.c.position.label("question_position"),
    questions.c.prompt.label("question_prompt"),
    questions.c.payload.label("question_payload"),
    questions.c.accept_message.label("question_accepts"),
    questions.c.asked_at.label("question_asked_at"),
    questions.c.expires_at.label("question_expires_at"),
)
"""The columns of ``open_question``, for a row that has those of another table too."""


SELECT_OPEN = select(questions.c.session_id, *OPEN)


def join_held(statement: Select[Any], table: Table = mailboxes) -> Select[Any]:
    """Join the question that a mailbox is held by, if there is one."""
    return statement.add_columns(*OPEN).outerjoin(
        questions,
        and_(
            questions.c.namespace == table.c.namespace,
            questions.c.session_id == table.c.session_id,
            questions.c.position == table.c.question,
        ),
    )


def open_question(session_id: str, row: Row[*tuple[Any, ...]]) -> OpenQuestion | None:
    """Return the question in a row with the columns ``OPEN``, ``None`` if there is none."""
    if row.question_position is None:
        return None
    prompt, data = decode_question(row.question_prompt, row.question_payload)
    return OpenQuestion.from_fields(
        id=question_id(session_id, row.question_position),
        session_id=SessionId(session_id),
        prompt=prompt,
        data=data,
        asked_at=row.question_asked_at,
        expires_at=row.question_expires_at,
        receipt=Receipt.from_fields(
            session_id=SessionId(session_id), position=row.question_position, duplicate=False
        ),
        accept_message=bool(row.question_accepts),
    )


def decode_question(prompt: str, payload: str | None) -> tuple[str, Any]:
    """Return the exact prompt and the data."""
    if payload is None:
        return prompt, None
    given = parse(payload)
    return given["prompt"], given["data"]


def asked_question(row: Row[*tuple[Any, ...]]) -> Question:
    """Return the question of a row of ``questions`` as it was asked."""
    prompt, data = decode_question(row.prompt, row.payload)
    expires_in = None if row.expires_at is None else (row.expires_at - row.asked_at).total_seconds()
    return Question.from_fields(
        prompt=prompt,
        data=data,
        expires_in=expires_in,
        accept_message=bool(row.accept_message),
    )
