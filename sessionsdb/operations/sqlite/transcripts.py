"""Writes to transcripts on SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.sqlite.clock import stored_now
from sessionsdb.engine.sqlite.series_insert import SeriesInsert
from sessionsdb.engine.statement import Insert, Statement
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations.transcript_types import (
    HAS_MARK,
    Attributes,
    SessionAppend,
    TranscriptMark,
    TranscriptState,
    mark_parameters,
)


def advance(
    count: str, *, versions: str = "1", message_count: str = "message_count + :count"
) -> str:
    """Return the SET clause for a session whose transcript gets ``count`` messages."""
    return f"""
    SET version = version + {versions},
        last_seq = last_seq + {count},
        message_count = {message_count},
        updated_at = max(updated_at, :now),
        last_active = max(last_active, :now)
    """


_VERSION = Statement("""
SELECT version FROM sessions WHERE namespace = :namespace AND id = :session_id
""")

_LOCK_TRANSCRIPT = Statement("""
SELECT version, message_count FROM sessions WHERE namespace = :namespace AND id = :session_id
""")

_MARKED = Statement(f"""
SELECT version FROM sessions WHERE namespace = :namespace AND id = :session_id AND {HAS_MARK}
""")

_APPEND = Statement(f"""
UPDATE sessions {advance(":count", versions=":versions")}
WHERE namespace = :namespace AND id = :session_id
  AND (:expected IS NULL OR version = :expected)
RETURNING version, last_seq - :count AS base
""")

_WRITE_TAIL = Statement(f"""
UPDATE sessions
    {advance(":count", message_count="coalesce(:message_count, message_count + :count)")},
        rewrites = rewrites + :rewrites
WHERE namespace = :namespace AND id = :session_id
RETURNING version, last_seq - :count AS base, updated_at
""")

_EXTEND = Statement(f"""
UPDATE sessions {advance(":count")}
WHERE namespace = :namespace AND id = :session_id AND {HAS_MARK}
RETURNING version, last_seq - :count AS base, updated_at
""")

_WRITE = Insert("""
INSERT INTO messages (namespace, session_id, seq, role, content, payload, created_at, write_id)
VALUES (:namespace, :session_id, :seq, :role, :content, :payload, :created_at, :write_id)
""")

_SERIES = SeriesInsert(
    "messages",
    shared=("namespace", "session_id", "created_at"),
    counted="seq",
    columns=StoredMessage._fields,
)

_TAIL = SeriesInsert(
    "messages",
    shared=("namespace", "session_id", "created_at"),
    counted="seq",
    columns=(*StoredMessage._fields, "write_id", *Attributes._fields),
)

_FEW_MESSAGES = 8
"""Fewer messages of a session are written together with those of other sessions."""


def append(
    connection: Connection, appends: Sequence[SessionAppend], write_id: str | None
) -> list[int | None]:
    present = stored_now(connection)
    versions_before: list[int | None] = []
    written: list[tuple[Any, ...]] = []
    for one in appends:
        changed = None
        if one.messages:
            changed = _APPEND.row(
                connection,
                {
                    "namespace": one.namespace,
                    "session_id": one.session_id,
                    "expected": one.expected_version,
                    "versions": one.versions,
                    "count": len(one.messages),
                    "now": present,
                },
            )
        if changed is None:
            versions_before.append(lock_version(connection, one.namespace, one.session_id))
            continue
        version, base = changed
        versions_before.append(version - one.versions)
        # No write_id: on SQLite an answer can't be lost.
        if len(one.messages) < _FEW_MESSAGES:
            written += [
                (one.namespace, one.session_id, seq, *message, present, None)
                for seq, message in enumerate(one.messages, base + 1)
            ]
        else:
            _SERIES.write(connection, (one.namespace, one.session_id, present), base, one.messages)
    _WRITE.each(connection, written)
    return versions_before


def lock_version(connection: Connection, namespace: str, session_id: str) -> int | None:
    row = _VERSION.row(connection, {"namespace": namespace, "session_id": session_id})
    return None if row is None else row[0]


def lock_transcript(
    connection: Connection, namespace: str, session_id: str
) -> TranscriptState | None:
    row = _LOCK_TRANSCRIPT.row(connection, {"namespace": namespace, "session_id": session_id})
    return None if row is None else TranscriptState(*row)


def lock_marked(
    connection: Connection, namespace: str, session_id: str, mark: TranscriptMark
) -> bool:
    key = {"namespace": namespace, "session_id": session_id}
    return _MARKED.row(connection, key | mark_parameters(mark)) is not None


def write_tail(
    connection: Connection,
    namespace: str,
    session_id: str,
    added: Sequence[StoredMessage],
    attributes: Sequence[Attributes],
    write_id: str,
    message_count: int | None,
    rewrites: int,
) -> tuple[int, int] | None:
    key = (namespace, session_id)
    parameters = {"message_count": message_count, "rewrites": rewrites}
    written = _advance(connection, _WRITE_TAIL, key, len(added), parameters)
    if written is None:
        return None
    version, base, updated_at = written
    rows: list[tuple[Any, ...]] = [
        (*message, None, *beside) for message, beside in zip(added, attributes, strict=True)
    ]
    if rows:
        rows[0] = (*added[0], f"{write_id}:{version}", *attributes[0])
    _TAIL.write(connection, (namespace, session_id, updated_at), base, rows)
    return version, base


def extend(
    connection: Connection,
    namespace: str,
    session_id: str,
    added: Sequence[StoredMessage],
    write_id: str,
    mark: TranscriptMark,
) -> tuple[int, int] | None:
    written = _advance(
        connection, _EXTEND, (namespace, session_id), len(added), mark_parameters(mark)
    )
    if written is None:
        return None
    version, base, updated_at = written
    first = (namespace, session_id, base + 1, *added[0], updated_at, f"{write_id}:{version}")
    _WRITE.each(connection, [first])
    _SERIES.write(connection, (namespace, session_id, updated_at), base + 1, added[1:])
    return version, base


def _advance(
    connection: Connection,
    statement: Statement,
    key: tuple[str, str],
    count: int,
    parameters: dict[str, Any],
) -> tuple[int, int, str] | None:
    """Return the new version, the ``seq`` before the first new message, and the time."""
    given = {
        "namespace": key[0],
        "session_id": key[1],
        "count": count,
        "now": stored_now(connection),
    }
    changed = statement.row(connection, parameters | given)
    return None if changed is None else (changed[0], changed[1], changed[2])
