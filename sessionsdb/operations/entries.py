"""Entries: whole messages of a transcript, with the values that stand beside each of them.

A page is one scan of the primary key from its edge. A message with a key is found by an index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_utc
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.messages.codec import Message, decode
from sessionsdb.messages.extra import extra_fields
from sessionsdb.operations import registry
from sessionsdb.operations.history_page import FIRST_SEQ, LAST_SEQ
from sessionsdb.types import TranscriptEntry

_ENTRY = """
    SELECT m.session_id, m.seq, m.role, m.content, m.payload, m.created_at, m.sent_at, m.key,
           m.sender, m.extra
    FROM messages AS m
"""

_PAGE = f"""
    {_ENTRY}
    WHERE m.namespace = :namespace AND m.session_id = :session_id
      AND m.seq > :after AND m.seq < :before
"""

_NEWEST = Statement(f"{_PAGE} ORDER BY m.seq DESC LIMIT :limit")
_OLDEST = Statement(f"{_PAGE} ORDER BY m.seq LIMIT :limit")

_BY_KEY = Statement(f"""
    {_ENTRY}
    WHERE m.namespace = :namespace AND m.key = :key AND m.session_id = :session_id
""")

# Few sessions have the same key: forks of one another. The order by id decides between sessions of
# the same moment.
_FIRST_BY_KEY = Statement(f"""
    {_ENTRY}
    JOIN sessions AS s ON s.namespace = m.namespace AND s.id = m.session_id
    WHERE m.namespace = :namespace AND m.key = :key
    ORDER BY s.created_at, s.id LIMIT 1
""")


class EntryPage(NamedTuple):
    """The request for a page, as ``HistoryPage``."""

    namespace: str
    session_id: str
    limit: int
    before: int | None = None
    after: int | None = None


def read_entries(connection: Connection, page: EntryPage) -> list[TranscriptEntry]:
    """Return the entries of a page, newest last. Raises ``UnknownSession``."""
    rows = _read(connection, page)
    if not rows:
        registry.require(connection, page.namespace, page.session_id)
        if page.limit and page.before is None and (page.after or 0) <= 0:
            # On PostgreSQL it may have been created with its messages after the first look.
            rows = _read(connection, page)
    return _entries_of(rows)


def load_newest(
    connection: Connection, namespace: str, session_id: str, limit: int
) -> list[Message]:
    """Return the newest ``limit`` messages of a transcript as new objects, newest last."""
    rows = _read(connection, EntryPage(namespace, session_id, limit))
    return [decode(row[2], row[3], row[4]) for row in rows]


def find(
    connection: Connection, namespace: str, key: str, session_id: str | None
) -> TranscriptEntry | None:
    """Return the message with this key of a session, or of the session that was made first."""
    parameters = {"namespace": namespace, "key": key, "session_id": session_id}
    statement = _FIRST_BY_KEY if session_id is None else _BY_KEY
    row = statement.row(connection, parameters)
    return None if row is None else _entries_of([row])[0]


def _read(connection: Connection, page: EntryPage) -> Sequence[Row]:
    parameters = {
        "namespace": page.namespace,
        "session_id": page.session_id,
        "limit": page.limit,
        "after": FIRST_SEQ if page.after is None else max(page.after, FIRST_SEQ),
        "before": LAST_SEQ if page.before is None else page.before,
    }
    if page.after is not None:
        return _OLDEST.rows(connection, parameters)
    return _NEWEST.rows(connection, parameters)[::-1]


def _entries_of(rows: Iterable[Row]) -> list[TranscriptEntry]:
    return TranscriptEntry.list_from_fields(_fields_of(rows))


def _fields_of(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    # One pass without a call for a common message: a page of 50 takes 43 µs on SQLite. With calls
    # of `decode`, `as_utc` and `extra_fields` for each message it took 92 µs.
    for session_id, seq, role, content, payload, created_at, sent_at, key, sender, extra in rows:
        fields = {
            "session_id": session_id,
            "seq": seq,
            "message": {"role": role, "content": content}
            if payload is None
            else decode(role, content, payload),
            "created_at": as_utc(created_at),
            "sent_at": None if sent_at is None else as_utc(sent_at),
            "key": key,
            "sender": sender,
            "author": None,
            "metadata": None,
            "interrupted": False,
        }
        if extra is not None:
            fields.update(extra_fields(extra))
        yield fields
