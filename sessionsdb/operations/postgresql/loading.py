"""Load transcripts on PostgreSQL: of many callers in one statement, and behind remembered rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.operations.history_page import FIRST_SEQ
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.loading import Load, Loaded, join
from sessionsdb.operations.newer_rows import NewRows, ReadState
from sessionsdb.operations.postgresql.newer_rows import (
    REQUEST_COLUMNS,
    new_rows_of,
    one_request,
    select_new_rows,
    values_of,
)

MAX_MESSAGES = 100
"""A transcript of which more messages are to be read is loaded alone. Turns of 64 callers over 100
messages are 1.2 times as fast when their loads share statements. Over 400 messages, none of them
remembered, they would be 0.73 times as fast."""


class NotLoaded:
    """The answer for a transcript that is to be loaded alone."""


Answer = Loaded | NotLoaded | None
"""``None`` is the answer for an unknown session."""

# ---- nothing is to be remembered -------------------------------------------------------------

_KEYS = ArrayTable("r", namespace="text", session_id="text", ordinality="number")

# One statement has one snapshot, so the count and the messages of a session fit together.
_LOAD = Statement(f"""
SELECT m.role, m.content, m.payload, m.seq, r.number, s.message_count
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

_SEQ, _NUMBER = itemgetter(3), itemgetter(4)
"""Places of columns in the rows of the statements that are shared."""

# ---- rows are remembered ---------------------------------------------------------------------

_COLUMNS = {"role": "t.role", "content": "t.content", "payload": "t.payload", "seq": "t.seq"}

_REQUESTS = ArrayTable("r", ordinality="number", **REQUEST_COLUMNS)

_IS_SHORT = f"""
          AND CASE WHEN read.behind = {FIRST_SEQ} THEN s.message_count
              ELSE s.last_seq - read.behind END <= {MAX_MESSAGES}"""

_NEW_OF_ONE = Statement(select_new_rows(one_request(REQUEST_COLUMNS), _COLUMNS))
_NEW_OF_MANY = Statement(select_new_rows(str(_REQUESTS), _COLUMNS, rest=_IS_SHORT))


def read_new_rows(connection: Connection, key: SessionKey, remembered: ReadState) -> NewRows | None:
    values = dict(zip(REQUEST_COLUMNS, values_of(key, remembered), strict=True))
    rows = sorted(_NEW_OF_ONE.rows(connection, values), key=_SEQ)
    return new_rows_of(rows) if rows else None


def load_short(connection: Connection, requests: Sequence[Load]) -> list[Answer]:
    """Return an answer for each request, in their order. A session of many callers is read once."""
    remembered = {one.key: one.remembered for one in requests if one.remembered is not None}
    if remembered:
        answers = _load_behind(connection, remembered)
        answers |= _load(connection, [one.key for one in requests if one.key not in answers])
    else:
        answers = _load(connection, [one.key for one in requests])
    return [answers[one.key] for one in requests]


def _load(connection: Connection, keys: Sequence[SessionKey]) -> dict[SessionKey, Answer]:
    if not keys:
        return {}
    wanted = list(dict.fromkeys(keys))
    found = _by_number(_LOAD.rows(connection, _KEYS.parameters(wanted)))
    return {key: _transcript(found.get(number)) for number, key in enumerate(wanted, 1)}


def _transcript(rows: list[Row] | None) -> Answer:
    if rows is None:
        return None
    *_, seq, _number, message_count = rows[0]
    if seq is None:
        return NotLoaded() if message_count else Loaded(())
    rows.sort(key=_SEQ)
    return Loaded(rows)


def _load_behind(
    connection: Connection, remembered: Mapping[SessionKey, Loaded]
) -> dict[SessionKey, Answer]:
    values = [values_of(key, known.state) for key, known in remembered.items()]
    found = _by_number(_NEW_OF_MANY.rows(connection, _REQUESTS.parameters(values)))
    return {
        key: _joined(known, found.get(number))
        for number, (key, known) in enumerate(remembered.items(), 1)
    }


def _joined(remembered: Loaded, rows: list[Row] | None) -> Answer:
    if rows is None:
        return None
    rows.sort(key=_SEQ)
    new = new_rows_of(rows)
    if not new.rows and new.state.last_seq > max(new.behind, 0):
        return NotLoaded()  # too many messages, or none of those are left
    return join(remembered, new) or NotLoaded()


def _by_number(rows: Sequence[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for number, group in groupby(rows, _NUMBER):
        found.setdefault(number, []).extend(group)
    return found
