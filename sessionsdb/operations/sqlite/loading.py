"""Load transcripts behind remembered rows on SQLite: two statements of one transaction."""

from __future__ import annotations

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.operations.loading import Head, Load, NewRows

_TIME_AT = """(
    SELECT m.created_at FROM messages AS m
    WHERE m.namespace = s.namespace AND m.session_id = s.id AND m.seq = {seq}
)"""

_HEAD = Statement(f"""
SELECT coalesce(s.incarnation, ''), s.version, s.rewrites,
       s.last_seq, {_TIME_AT.format(seq="s.last_seq")},
       s.message_count, {_TIME_AT.format(seq=":remembered_seq")}
FROM sessions AS s
WHERE s.namespace = :namespace AND s.id = :session_id
""")

_ROWS_BEHIND = Statement("""
SELECT role, content, payload FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq > :behind
ORDER BY seq
""")


def read_new_rows(connection: Connection, request: Load) -> NewRows | None:
    (namespace, session_id), remembered = request
    assert remembered is not None
    parameters = {
        "namespace": namespace,
        "session_id": session_id,
        "remembered_seq": remembered.last_seq,
    }
    row = _HEAD.row(connection, parameters)
    if row is None:
        return None
    head = Head(*row)
    parameters["behind"] = head.read_behind(remembered)
    return NewRows(head, _ROWS_BEHIND.rows(connection, parameters))
