"""The transcripts of many callers in one statement, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.messages.codec import Message, decode_rows
from sessionsdb.operations.keys import SessionKey

MAX_MESSAGES = 100
"""A longer transcript is loaded alone. Turns of 64 callers over 100 messages are 1.2 times as
fast when their loads share statements. Over 400 messages they would be 0.73 times as fast."""


class NotLoaded:
    """The answer for a transcript that is to be loaded alone: one of more than ``MAX_MESSAGES``."""


_KEYS = ArrayTable("r", namespace="text", session_id="text", ordinality="number")

# One statement has one snapshot, so the count and the messages of a session fit together.
_LOAD = Statement(f"""
SELECT m.role, m.content, m.payload, m.seq, s.message_count, r.number
FROM {_KEYS}
JOIN sessions AS s ON s.namespace = r.namespace AND s.id = r.session_id
LEFT JOIN LATERAL (
    SELECT t.seq, t.role, t.content, t.payload
    FROM messages AS t
    WHERE t.namespace = r.namespace AND t.session_id = r.session_id
      AND s.message_count <= {MAX_MESSAGES}
    ORDER BY t.seq
) AS m ON true
""")

_SEQ, _NUMBER = itemgetter(3), itemgetter(5)


def load_short(
    connection: Connection, keys: Sequence[SessionKey]
) -> list[Sequence[Row] | NotLoaded | None]:
    """Return an answer for each key, in the order of ``keys``.

    It has the rows of the transcript, oldest first. ``None`` is the answer for an unknown session.
    """
    found: dict[int, list[Row]] = {}
    wanted = list(dict.fromkeys(keys))  # a session of many callers is read once
    for number, rows in groupby(_LOAD.rows(connection, _KEYS.parameters(wanted)), _NUMBER):
        found.setdefault(number, []).extend(rows)
    answers = {key: _transcript(found.get(number)) for number, key in enumerate(wanted, 1)}
    return [answers[key] for key in keys]


def _transcript(rows: list[Row] | None) -> Sequence[Row] | NotLoaded | None:
    if rows is None:
        return None
    *_message, seq, message_count, _number = rows[0]
    if seq is None:
        return NotLoaded() if message_count else ()
    rows.sort(key=_SEQ)
    return rows


def messages_of(rows: Sequence[Row]) -> list[Message]:
    """Return the messages of a transcript as new objects."""
    return decode_rows(rows)
