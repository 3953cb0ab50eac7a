"""The pieces of replies that running turns stream.

A row is one piece: text, or data of a kind. The pieces of a turn bear the epoch of its lease. So
pieces of a turn that lost its lease are invisible from that moment on.
"""

from __future__ import annotations

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.operations.keys import SessionKey

_PARTIAL_TEXT = Statement("""
SELECT p.text
FROM mailboxes AS m
JOIN pieces AS p ON p.namespace = m.namespace AND p.session_id = m.session_id AND p.epoch = m.epoch
WHERE m.namespace = :namespace AND m.session_id = :session_id AND p.text IS NOT NULL
  AND p.generation = (
      SELECT n.generation FROM pieces AS n
      WHERE n.namespace = m.namespace AND n.session_id = m.session_id AND n.epoch = m.epoch
      ORDER BY n.generation DESC LIMIT 1
  )
ORDER BY p.number
""")


def read_partial_text(connection: Connection, key: SessionKey) -> str:
    """Return the text that the running turn of a session has streamed so far."""
    rows = _PARTIAL_TEXT.rows(connection, {"namespace": key[0], "session_id": key[1]})
    return "".join(text for (text,) in rows)
