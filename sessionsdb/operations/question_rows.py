"""Rows of ``questions``, and the values that are made from them."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select

from sessionsdb.errors import InvalidMessage
from sessionsdb.messages.codec import encode_data
from sessionsdb.messages.json_text import parse_object, replace_unstorable
from sessionsdb.operations.inbox_types import Lease
from sessionsdb.operations.keys import SessionKey
from sessionsdb.schema import questions
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


# ---- open questions ----------------------------------------------------------------------------

SELECT_OPEN = select(
    questions.c.session_id,
    questions.c.position,
    questions.c.prompt,
    questions.c.payload,
    questions.c.accept_message,
    questions.c.asked_at,
    questions.c.expires_at,
).where(questions.c.closed_at.is_(None))
"""Selects the rows of ``open_question``."""

_BY_KEY = SELECT_OPEN.where(
    questions.c.namespace == bindparam("of_namespace"),
    questions.c.session_id == bindparam("of_session"),
    questions.c.position == bindparam("at"),
)


def read_open(connection: Connection, key: SessionKey, position: int) -> OpenQuestion | None:
    """Return a question if it is open.

    Rows of other tables tell whether there is one to look for. So no look-up of a session or of an
    outcome joins the questions.
    """
    parameters = {"of_namespace": key[0], "of_session": key[1], "at": position}
    row = connection.execute(_BY_KEY, parameters).one_or_none()
    return None if row is None else open_question(row)


def open_question(row: Row[*tuple[Any, ...]]) -> OpenQuestion:
    """Return the question of a row of ``SELECT_OPEN``."""
    prompt, data = decode_question(row.prompt, row.payload)
    session_id = SessionId(row.session_id)
    return OpenQuestion.from_fields(
        id=question_id(session_id, row.position),
        session_id=session_id,
        prompt=prompt,
        data=data,
        asked_at=row.asked_at,
        expires_at=row.expires_at,
        receipt=Receipt.from_fields(session_id=session_id, position=row.position, duplicate=False),
        accept_message=bool(row.accept_message),
    )


def decode_question(prompt: str, payload: str | None) -> tuple[str, Any]:
    """Return the exact prompt and the data."""
    if payload is None:
        return prompt, None
    given = parse_object(payload)
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


def read_of_turn(connection: Connection, lease: Lease) -> Row[*tuple[Any, ...]] | None:
    """Return the question whose answer, expiry or withdrawal a turn is to see."""
    answered = (one.answers for one in lease.deliveries if one.answers is not None)
    position = next(answered, lease.withdrawn)
    row = None if position is None else read_question(connection, lease.key, position)
    return row if row is not None and row.status in ("answered", "expired", "withdrawn") else None


def is_notice(connection: Connection, key: SessionKey, question: int | None) -> bool:
    """Return whether the message that answers ``question`` is the notice of its expiry.

    The notice has no row in the transcript.
    """
    if question is None:
        return False
    row = read_question(connection, key, question)
    return row is not None and row.status == "expired"
