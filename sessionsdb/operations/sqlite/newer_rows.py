"""Read the state of a transcript on SQLite, before the rows behind remembered ones."""

from __future__ import annotations

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.newer_rows import ReadState

_TIME_AT = """(
    SELECT m.created_at FROM messages AS m
    WHERE m.namespace = s.namespace AND m.session_id = s.id AND m.seq = {seq}
)"""

_STATE = Statement(f"""
SELECT {_TIME_AT.format(seq=":remembered_seq")},
       coalesce(s.incarnation, ''), s.version, s.rewrites,
       s.last_seq, {_TIME_AT.format(seq="s.last_seq")}, s.message_count
FROM sessions AS s
WHERE s.namespace = :namespace AND s.id = :session_id
""")


def read_state(
    connection: Connection, key: SessionKey, remembered: ReadState
) -> tuple[ReadState, str | None] | None:
    """Return the state, and the time of the last remembered message.

    ``None`` for an unknown session.
    """
    row = _STATE.row(
        connection,
        {"namespace": key[0], "session_id": key[1], "remembered_seq": remembered.last_seq},
    )
    if row is None:
        return None
    remembered_at, *state = row
    return ReadState(*state), remembered_at
