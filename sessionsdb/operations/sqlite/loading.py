"""Load transcripts behind remembered rows on SQLite: two statements of one transaction."""

from __future__ import annotations

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.newer_rows import NewRows, ReadState, read_behind
from sessionsdb.operations.sqlite.newer_rows import read_state

_ROWS_BEHIND = Statement("""
SELECT role, content, payload FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq > :behind
ORDER BY seq
""")


def read_new_rows(connection: Connection, key: SessionKey, remembered: ReadState) -> NewRows | None:
    found = read_state(connection, key, remembered)
    if found is None:
        return None
    state, remembered_at = found
    behind = read_behind(remembered, state)
    parameters = {"namespace": key[0], "session_id": key[1], "behind": behind}
    return NewRows(state, remembered_at, behind, _ROWS_BEHIND.rows(connection, parameters))
