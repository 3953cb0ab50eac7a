"""Saving: a transcript made equal to what the caller has, by writing only what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from sessionsdb.content import StoredMessage
from sessionsdb.errors import VersionConflict
from sessionsdb.operations import registry
from sessionsdb.operations.arrays import columns
from sessionsdb.operations.clock import sqlite_now
from sessionsdb.operations.history import FIRST_SEQ
from sessionsdb.operations.statement import Statement
from sessionsdb.operations.transcripts import WRITE_SQLITE, rows_of

# The session's row is held from here on: nobody appends between the comparison and the writing.
_HOLD_POSTGRESQL = Statement("""
SELECT version FROM sessions WHERE namespace = :namespace AND id = :session_id
FOR NO KEY UPDATE
""")

_HOLD_SQLITE = Statement("""
SELECT version FROM sessions WHERE namespace = :namespace AND id = :session_id
""")

_STORED = Statement("""
SELECT seq, role, content, payload FROM messages
WHERE namespace = :namespace AND session_id = :session_id
ORDER BY seq
""")

_CUT = Statement("""
DELETE FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq > :last_kept
""")

_ADD_POSTGRESQL = Statement("""
WITH changed AS (
    UPDATE sessions
    SET version = version + 1,
        last_seq = last_seq + CAST(:added AS bigint),
        message_count = :count,
        updated_at = greatest(updated_at, statement_timestamp()),
        last_active = greatest(last_active, statement_timestamp())
    WHERE namespace = :namespace AND id = :session_id
    RETURNING version, last_seq - CAST(:added AS bigint) AS base, updated_at
),
written AS (
    INSERT INTO messages (namespace, session_id, seq, role, content, payload, created_at)
    SELECT :namespace, :session_id, c.base + m.place, m.role, m.content, m.payload, c.updated_at
    FROM changed AS c, unnest(
        CAST(:roles AS text[]), CAST(:contents AS text[]), CAST(:payloads AS text[])
    ) WITH ORDINALITY AS m(role, content, payload, place)
)
SELECT version FROM changed
""")

_CHANGE_SQLITE = Statement("""
UPDATE sessions
SET version = version + 1,
    last_seq = last_seq + :added,
    message_count = :count,
    updated_at = max(updated_at, :now),
    last_active = max(last_active, :now)
WHERE namespace = :namespace AND id = :session_id
RETURNING version, last_seq - :added AS base, updated_at
""")


def save(
    connection: Connection,
    namespace: str,
    session_id: str,
    wanted: Sequence[StoredMessage],
    *,
    expected_version: int | None = None,
) -> int:
    """Make the transcript equal to ``wanted``, by writing only what differs; its version.

    The common beginning stays as it is, what differs behind it is deleted and the rest appended
    with new ``seq``s. A transcript that is equal already is not touched. A session that is
    unknown is made, with channel ``store``.
    """
    key = {"namespace": namespace, "session_id": session_id}
    found = _held(connection, key)
    if expected_version is not None and expected_version != (found or 0):
        raise VersionConflict(session_id, expected_version, found or 0)
    if found is None:
        registry.create_for_store(connection, namespace, session_id)
        found = _held(connection, key)
        assert found is not None
        if expected_version is not None and found != expected_version:
            raise VersionConflict(session_id, expected_version, found)

    kept, last_kept, stored = _common_beginning(connection, key, wanted)
    added = wanted[kept:]
    if kept == stored and not added:
        return found
    if kept < stored:
        _CUT.rows(connection, key | {"last_kept": last_kept})
    return _add(connection, key, added, count=len(wanted))


def _held(connection: Connection, key: dict[str, Any]) -> int | None:
    on_postgresql = connection.dialect.name == "postgresql"
    found = (_HOLD_POSTGRESQL if on_postgresql else _HOLD_SQLITE).row(connection, key)
    return None if found is None else found[0]


def _common_beginning(
    connection: Connection, key: dict[str, Any], wanted: Sequence[StoredMessage]
) -> tuple[int, int, int]:
    """How many messages are the same from the start, the last such ``seq``, how many are stored."""
    rows = _STORED.rows(connection, key)
    kept, last_kept = 0, FIRST_SEQ
    for (seq, *found), message in zip(rows, wanted, strict=False):
        # The payload says it all: a rendering of an older version of this package may differ.
        if found[2] != message[2] or (found[2] is None and tuple(found) != message):
            break
        kept, last_kept = kept + 1, seq
    return kept, last_kept, len(rows)


def _add(
    connection: Connection, key: dict[str, Any], added: Sequence[StoredMessage], count: int
) -> int:
    """Put the messages behind what is kept; the session's new version."""
    numbers = {"added": len(added), "count": count}
    if connection.dialect.name == "postgresql":
        roles, contents, payloads = columns(added, 3)
        texts = {"roles": roles, "contents": contents, "payloads": payloads}
        changed = _ADD_POSTGRESQL.row(connection, key | numbers | texts)
        assert changed is not None
        return int(changed[0])
    changed = _CHANGE_SQLITE.row(connection, key | numbers | {"now": sqlite_now(connection)})
    assert changed is not None
    version, base, updated_at = changed
    WRITE_SQLITE.each(
        connection, list(rows_of(key["namespace"], key["session_id"], base, added, updated_at))
    )
    return int(version)
